"""Which tensors are spikes: where numbers were compared or rounded, and what became of the result.

A spike is born where a comparison of numbers becomes a number, chooses between two constants, or is written into one,
and where numbers are rounded to few whole ones. It stays one when it is moved, scaled or bounded by no data.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from . import moves
from .dispatch import tensors_in
from .operands import LARGEST_LEVEL, count_nonzeros, count_repeated_units
from .storages import Member, StorageSet, has_storage, storage_key

COMPARISONS = frozenset(("ge", "gt", "le", "lt"))
LOGIC = frozenset(
    (
        *("logical_and", "logical_or", "logical_xor", "logical_not"),
        *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "__and__", "__or__", "__xor__"),
    )
)
ROUNDINGS = frozenset(("floor", "round", "ceil", "trunc", "sign", "sgn", "heaviside", "floor_divide"))
FILLS = frozenset(f"{new}{value}" for value in ("zeros", "ones", "full") for new in ("", "new_")) | {
    *("zeros_like", "ones_like", "full_like")
}
CHOICES = frozenset(("where", "masked_fill", "index_put", "_index_put_impl", "mul", "div", "add", "sub", "rsub"))
# constants written at places of a constant: the mask of those that win
MASKS = frozenset(("index_put", "_index_put_impl", "scatter", "index_fill"))
SCALINGS = frozenset(
    ("mul", "div", "add", "sub", "rsub", "neg", "abs", "relu", "clamp", "clamp_min", "clamp_max", "hardtanh", "clone")
)
CASTS = frozenset(("_to_copy", "copy"))
# whatever else is computed, no spikes come of it
KNOWN = COMPARISONS | LOGIC | ROUNDINGS | FILLS | CHOICES | SCALINGS | CASTS | moves.MOVES | {"bernoulli"}


# what is known of a memory: the sum of its marks
COMPARED, FILLED, SPIKING, SHIFTED, NOTHING, CHOSEN = 1, 2, 4, 8, 16, 32


class Spikes:
    """The tensors that are alive and hold comparisons, constants or spikes that nobody has counted yet."""

    def __init__(self, is_constant: Callable[[Tensor], bool]):
        self._is_constant = is_constant
        # a name is where they were born, and of SHIFTED spikes the number that was added or taken away: a surrogate
        # gives it back.
        # NOTHING is x - x.detach() and its products, which a surrogate adds: they have a derivative and are 0
        self._marked = StorageSet()
        self._spiking = 0

    def __bool__(self) -> bool:
        return self._spiking > 0

    def __contains__(self, tensor: Tensor) -> bool:
        return self._has(tensor, SPIKING)

    def discard(self, tensor: Tensor) -> None:
        """They have been counted."""
        self.mark(tensor, 0, SPIKING)

    def forget_freed(self) -> None:
        self._marked.forget_freed()
        self._spiking = sum(member.mark & SPIKING > 0 for member in self._marked.members.values())

    @property
    def members(self) -> dict[int, Member]:
        """What has marks, by memory."""
        return self._marked.members

    def of_memory(self, memory: int) -> int:
        """Return the marks of a memory, as `storage_key` names it: 0 for most."""
        member = self._marked.members.get(memory)
        return 0 if member is None else member.mark

    def mark(self, tensor: Tensor, marks: int, without: int = 0, born: str = "", shift: Hashable = None) -> None:
        """Give marks to the memory of a tensor, and take away those of `without`."""
        if not has_storage(tensor):
            return
        known = self._marked.members.get(storage_key(tensor))
        before = 0 if known is None else known.mark
        after = (before & ~without) | marks
        if after:
            was_born, was_shifted = ("", None) if known is None else known.name
            self._marked.add(tensor, (born or was_born, was_shifted if shift is None else shift), mark=after)
        elif before:
            self._marked.discard(tensor)
        self._spiking += (after & SPIKING > 0) - (before & SPIKING > 0)

    def _has(self, tensor: Tensor, mark: int) -> bool:
        return has_storage(tensor) and self.of_memory(storage_key(tensor)) & mark > 0

    def birthplace(self, spikes: Tensor) -> str:
        """Return the module in which they were born."""
        return self._marked.member(spikes).name[0]

    def follow(self, name: str, where: str, kwargs: dict, inputs: list[Tensor], results: list[Tensor]) -> None:
        """See what an operator that has run on data in module `where` makes of spikes."""
        if not results:
            return
        result = results[0]
        if name in FILLS:
            self.mark(result, FILLED)
        elif self._is_nothing(name, kwargs, inputs):
            self.mark(result, NOTHING, without=COMPARED | FILLED | SPIKING)
        elif name in MASKS and self._is_mask(inputs):
            self.mark(result, CHOSEN, without=COMPARED | FILLED | SPIKING | NOTHING)
        elif name not in KNOWN:
            self._forget(result)
        elif self._are_compared(name, inputs):
            self.mark(result, SPIKING if result.is_floating_point() else COMPARED, born=where)
        elif self._are_born(name, kwargs, inputs, result) or self._stay(name, inputs):
            born = next((self.birthplace(tensor) for tensor in inputs if tensor in self), where)
            self.mark(result, SPIKING, without=FILLED, born=born)
        elif not self._is_given_back(name, inputs, result):
            self._forget(result)

    def _is_given_back(self, name: str, inputs: list[Tensor], result: Tensor) -> bool:
        """(spike - soft) + soft and (spike + soft) - soft are the spike, written so that it has a derivative."""
        if name not in ("add", "sub") or len(inputs) != 2:
            return False
        spikes, soft = inputs if self._has(inputs[0], SPIKING | SHIFTED) else reversed(inputs)
        if self._has(spikes, SHIFTED) and self._marked.member(spikes).name[1] == (name, storage_key(soft)):
            self.mark(result, SPIKING, born=self.birthplace(spikes))
        elif spikes in self and spikes is inputs[0]:
            shift = ({"add": "sub", "sub": "add"}[name], storage_key(soft))
            self.mark(result, SHIFTED, born=self.birthplace(spikes), shift=shift)
        else:
            return False
        return True

    def _forget(self, result: Tensor) -> None:
        """Memory that is written to is no longer what it was."""
        self.mark(result, 0, without=COMPARED | FILLED | SPIKING | NOTHING | CHOSEN)

    def _is_mask(self, inputs: list[Tensor]) -> bool:
        """True where a constant is written to places of another one that no comparison has chosen."""
        is_constant = self._has(inputs[0], FILLED) and (inputs[-1].dim() == 0 or self._has(inputs[-1], FILLED))
        return is_constant and not any(self._has(tensor, COMPARED) for tensor in inputs)

    def _is_nothing(self, name: str, kwargs: dict, inputs: list[Tensor]) -> bool:
        if name == "sub":
            return len(inputs) == 2 and "alpha" not in kwargs and _are_one(*inputs)
        return name in ("mul", "div") and any(self._has(tensor, NOTHING) for tensor in inputs)

    def _are_compared(self, name: str, inputs: list[Tensor]) -> bool:
        if name in COMPARISONS:
            return inputs[0].is_floating_point()
        return name in LOGIC and any(self._has(tensor, COMPARED) for tensor in inputs)

    def _are_born(self, name: str, kwargs: dict, inputs: list[Tensor], result: Tensor) -> bool:
        if name in ROUNDINGS or (name == "div" and kwargs.get("rounding_mode")):
            return inputs[0].is_floating_point() and _is_few(result)
        if name == "bernoulli":
            # a number that is drawn is compared with a probability; one of the program makes a mask
            return inputs[-1] is not result and not self._is_no_data(inputs[-1])
        if name in CASTS:
            if any(self._has(tensor, COMPARED) for tensor in inputs):
                return True
            return inputs[-1].is_floating_point() and not result.is_floating_point() and _is_few(result)
        return (
            name in CHOICES
            and result.dtype != torch.bool
            and any(self._has(tensor, COMPARED) for tensor in inputs)
            and all(self._has(tensor, COMPARED) or self._is_no_data(tensor) for tensor in inputs)
        )

    def _stay(self, name: str, inputs: list[Tensor]) -> bool:
        if name in SCALINGS or name in CASTS:
            others = [tensor for tensor in inputs if tensor not in self]
            # spikes are written into a memory that holds anything
            if name == "copy":
                return inputs[-1] in self
            # which of them pass may depend on data
            passing = COMPARED | CHOSEN if name == "mul" else 0
            return len(others) < len(inputs) and all(
                self._is_no_data(other) or self._has(other, passing) for other in others
            )
        return name in moves.MOVES and bool(inputs) and all(tensor in self for tensor in inputs)

    def _is_no_data(self, tensor: Tensor) -> bool:
        return tensor.dim() == 0 or self._has(tensor, FILLED | NOTHING) or self._is_constant(tensor)


def _are_one(first: Tensor, second: Tensor) -> bool:
    """True for the same numbers of the same memory."""
    if not (has_storage(first) and has_storage(second)) or storage_key(first) != storage_key(second):
        return False
    first_place, second_place = ((part.storage_offset(), part.shape, part.stride()) for part in (first, second))
    return first_place == second_place


def _is_few(result: Tensor) -> bool:
    """True for whole numbers that are levels of a spike."""
    if result.is_complex() or result.dtype == torch.bool or not result.numel():
        return False
    lowest, highest = (value.item() for value in result.aminmax())
    return lowest >= -LARGEST_LEVEL and highest <= LARGEST_LEVEL


def emission(spikes: Tensor) -> dict[str, int]:
    """Return what neurons did that emitted `spikes`, one element for each neuron and step."""
    return {
        "neuron_updates": spikes.numel(),
        "events_out": count_nonzeros(spikes),
        "repeated_events": count_repeated_units(spikes),
    }


def repeated_events(events: int, output: Any) -> int:
    """Return what the spikes in `output` repeat as unit spikes: the tensor that has `events` numbers other than 0."""
    spikes = (tensor for tensor in tensors_in(output) if has_storage(tensor) and count_nonzeros(tensor) == events)
    return next(map(count_repeated_units, spikes), 0)
