"""Which tensors are spikes: where numbers were compared or rounded, and what became of the result.

A spike is born where a comparison of numbers becomes a number, chooses between two constants, or is written into one,
and where numbers are rounded to few whole ones. It stays one when it is moved, scaled or bounded by no data.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import moves
from .dispatch import tensors_in
from .operands import LARGEST_LEVEL, count_repeated_units
from .storages import StorageSet, has_storage, storage_key

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
SCALINGS = frozenset(
    ("mul", "div", "add", "sub", "rsub", "neg", "abs", "relu", "clamp", "clamp_min", "clamp_max", "hardtanh", "clone")
)
CASTS = frozenset(("_to_copy", "copy"))
# whatever else is computed, no spikes come of it
KNOWN = COMPARISONS | LOGIC | ROUNDINGS | FILLS | CHOICES | SCALINGS | CASTS | moves.MOVES


class Spikes:
    """The tensors that are alive and hold comparisons, constants or spikes that nobody has counted yet."""

    def __init__(self, is_constant: Callable[[Tensor], bool]):
        self._is_constant = is_constant
        self._comparisons, self._fills, self._spikes = StorageSet(), StorageSet(), StorageSet()
        # spikes with a number added or taken away, and which: a surrogate gives it back
        self._shifted = StorageSet()

    def __bool__(self) -> bool:
        return bool(self._spikes)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._spikes

    def discard(self, tensor: Tensor) -> None:
        """They have been counted."""
        self._spikes.discard(tensor)

    def forget_freed(self) -> None:
        for storages in (self._comparisons, self._fills, self._spikes, self._shifted):
            storages.forget_freed()

    def birthplace(self, spikes: Tensor) -> str:
        """Return the module in which they were born."""
        return self._spikes.member(spikes).name

    def follow(self, name: str, where: str, kwargs: dict, inputs: list[Tensor], results: list[Tensor]) -> None:
        """See what an operator that has run on data in module `where` makes of spikes."""
        if not results:
            return
        result = results[0]
        if name in FILLS:
            self._fills.add(result)
        elif name not in KNOWN:
            self._forget(result)
        elif self._are_compared(name, inputs):
            (self._spikes if result.is_floating_point() else self._comparisons).add(result, where)
        elif self._are_born(name, kwargs, inputs, result) or self._stay(name, inputs):
            self._spikes.add(result, next(map(self.birthplace, filter(self._spikes.__contains__, inputs)), where))
            self._fills.discard(result)
        elif not self._is_given_back(name, inputs, result):
            self._forget(result)

    def _is_given_back(self, name: str, inputs: list[Tensor], result: Tensor) -> bool:
        """(spike - soft) + soft and (spike + soft) - soft are the spike, written so that it has a derivative."""
        if name not in ("add", "sub") or len(inputs) != 2:
            return False
        spikes, soft = inputs if inputs[0] in self._spikes or inputs[0] in self._shifted else reversed(inputs)
        if spikes in self._shifted and self._shifted.member(spikes).name[:2] == (name, storage_key(soft)):
            self._spikes.add(result, self._shifted.member(spikes).name[2])
        elif spikes in self._spikes and spikes is inputs[0]:
            inverse = {"add": "sub", "sub": "add"}[name]
            self._shifted.add(result, (inverse, storage_key(soft), self.birthplace(spikes)))
        else:
            return False
        return True

    def _forget(self, result: Tensor) -> None:
        """Memory that is written to is no longer what it was."""
        for storages in (self._comparisons, self._fills, self._spikes):
            if storages:
                storages.discard(result)

    def _are_compared(self, name: str, inputs: list[Tensor]) -> bool:
        if name in COMPARISONS:
            return inputs[0].is_floating_point()
        return name in LOGIC and any(tensor in self._comparisons for tensor in inputs)

    def _are_born(self, name: str, kwargs: dict, inputs: list[Tensor], result: Tensor) -> bool:
        if name in ROUNDINGS or (name == "div" and kwargs.get("rounding_mode")):
            return inputs[0].is_floating_point() and _is_few(result)
        if name in CASTS:
            if any(tensor in self._comparisons for tensor in inputs):
                return True
            return inputs[-1].is_floating_point() and not result.is_floating_point() and _is_few(result)
        return (
            name in CHOICES
            and result.dtype != torch.bool
            and any(tensor in self._comparisons for tensor in inputs)
            and all(tensor in self._comparisons or self._is_no_data(tensor) for tensor in inputs)
        )

    def _stay(self, name: str, inputs: list[Tensor]) -> bool:
        if name in SCALINGS or name in CASTS:
            others = [tensor for tensor in inputs if tensor not in self._spikes]
            # spikes are written into a memory that holds anything
            if name == "copy":
                return inputs[-1] in self._spikes
            return len(others) < len(inputs) and all(map(self._is_no_data, others))
        return name in moves.MOVES and bool(inputs) and all(tensor in self._spikes for tensor in inputs)

    def _is_no_data(self, tensor: Tensor) -> bool:
        return tensor.dim() == 0 or tensor in self._fills or self._is_constant(tensor)


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
        "events_out": int(spikes.count_nonzero()),
        "repeated_events": count_repeated_units(spikes),
    }


def repeated_events(events: int, output: Any) -> int:
    """Return what the spikes in `output` repeat as unit spikes: the tensor that has `events` numbers other than 0."""
    spikes = (tensor for tensor in tensors_in(output) if has_storage(tensor) and int(tensor.count_nonzero()) == events)
    return next(map(count_repeated_units, spikes), 0)
