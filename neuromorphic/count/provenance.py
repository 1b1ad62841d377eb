"""Where the numbers of a tensor come from: parameters alone, buffers, constants of the program, or data.

What depends on parameters alone is prepared once in a deployment and costs nothing. A buffer may be a weight or the
state of a neuron; what depends on buffers and parameters is prepared too, unless a call of the model writes the buffer
anew. A constant that a forward pass makes is computed with as it is made, and is a weight only where it meets data.
"""

from collections.abc import Hashable, Iterable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from . import moves
from .dispatch import without_tensors
from .storages import Member, StorageSet, has_storage, plain_tensors, storage_key, width


class Origin(IntEnum):
    """In the order in which one side of a product is taken for the weight."""

    DATA = 0
    CONSTANT = 1
    BUFFER = 2
    WEIGHT = 3


class Provenance:
    """The origin of every tensor that is alive, by the memory it lies in."""

    def __init__(self) -> None:
        self._sets = {origin: StorageSet() for origin in (Origin.WEIGHT, Origin.BUFFER, Origin.CONSTANT)}
        # (module, name) of a buffer -> the memory it lay in when the model was called
        self._places: dict[tuple[int, str], int] = {}
        self.state: set[Hashable] = set()
        """buffers and parameters that the model was seen to write"""

    def of(self, tensor: Tensor) -> Origin:
        if not has_storage(tensor):
            return Origin.DATA
        key = storage_key(tensor)
        for origin, storages in self._sets.items():
            if key in storages.members:
                return origin
        if isinstance(tensor, nn.Parameter):
            # of a lazy module, or of one that was changed during its own call
            self.add(Origin.WEIGHT, tensor, key, width(tensor) * tensor.numel())
            return Origin.WEIGHT
        return Origin.DATA

    def member(self, tensor: Tensor) -> Member | None:
        """Return what is known of a tensor that is no data."""
        if not has_storage(tensor):
            return None
        key = storage_key(tensor)
        for storages in self._sets.values():
            if key in storages.members:
                return storages.member(tensor)
        return None

    def add(
        self,
        origin: Origin,
        tensor: Tensor,
        name: Hashable,
        size: int,
        roots: frozenset[Hashable] = frozenset(),
    ) -> None:
        self._sets[origin].add(tensor, name, size, roots)

    def discard(self, tensor: Tensor) -> None:
        """From now on it is data."""
        for storages in self._sets.values():
            storages.discard(tensor)

    def forget_freed(self) -> None:
        for storages in self._sets.values():
            storages.forget_freed()

    def look_at(self, modules: Iterable[nn.Module]) -> None:
        """Take note of the parameters and buffers that the modules have now; a buffer that moved is a state."""
        for module in modules:
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._add_weight(parameter)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    self._look_at_buffer((id(module), name), buffer)

    def _add_weight(self, weight: Tensor) -> None:
        for part in plain_tensors(weight):
            key = storage_key(part)
            # one that a forward pass has written to is a state, see `write`
            if not (key in self._sets[Origin.WEIGHT].members or (key, "") in self.state):
                self.discard(part)
                self.add(Origin.WEIGHT, part, key, width(part) * part.numel())

    def _look_at_buffer(self, place: tuple[int, str], buffer: Tensor) -> None:
        # a single number is a constant; anything larger may be the state of a neuron, and is counted where it is used
        for part in plain_tensors(buffer):
            if part.numel() == 1:
                self._add_weight(part)
                continue
            key = storage_key(part)
            if self._places.get(place, key) != key:
                self.state.add(place)
            self._places[place] = key
            if key not in self._sets[Origin.BUFFER].members:
                self.discard(part)
                self.add(Origin.BUFFER, part, key, width(part) * part.numel(), frozenset((place,)))

    def write(self, tensor: Tensor) -> None:
        """An operator of the model has written data to `tensor`: it is no longer prepared.

        A parameter or buffer stays a weight where it enters a product, and the work on it counts.
        """
        origin = self.of(tensor)
        if origin is Origin.BUFFER:
            self.state |= self._sets[Origin.BUFFER].member(tensor).roots
        elif origin is Origin.WEIGHT and self._sets[Origin.WEIGHT].member(tensor).name == storage_key(tensor):
            key = storage_key(tensor)
            self.discard(tensor)
            self.state.add((key, ""))
            self.add(Origin.BUFFER, tensor, key, width(tensor) * tensor.numel(), frozenset(((key, ""),)))
        elif origin is not Origin.DATA:
            self.discard(tensor)

    def roots(self, tensors: Iterable[Tensor]) -> frozenset[Hashable]:
        """Return the buffers that the tensors were computed from."""
        members = (self.member(tensor) for tensor in tensors)
        return frozenset().union(*(member.roots for member in members if member is not None))

    def of_operator(
        self, func: OpOverload, name: str, inputs: list[Tensor], results: list[Tensor], is_inside: bool
    ) -> Origin:
        """Return the origin of what an operator has computed. Outside of the model a constant is data for it."""
        if not inputs or name in moves.LIFTS:
            is_made = (
                is_inside and name not in moves.STATE_MAKERS and torch.Tag.nondeterministic_seeded not in func.tags
            )
            if not is_made:
                return Origin.DATA
            # one number is part of the program, such as the scale of a weight
            return Origin.WEIGHT if all(result.numel() == 1 for result in results) else Origin.CONSTANT
        if name in moves.STATE_MAKERS:
            return Origin.DATA
        origin = Origin.WEIGHT
        for tensor in inputs:
            origin = min(origin, self.of(tensor))
            if origin is Origin.DATA:
                return origin
        if origin is Origin.WEIGHT and name in moves.RANGES:
            return Origin.CONSTANT
        if origin is Origin.BUFFER and self.state and self.roots(inputs) & self.state:
            return Origin.DATA
        return origin

    def remember(
        self,
        origin: Origin,
        func: OpOverload,
        name: str,
        args: tuple,
        kwargs: dict[str, Any],
        inputs: list[Tensor],
        results: list[Tensor],
    ) -> None:
        """The results are of `origin`, with a name that tells how they were made."""
        results = [result for result in results if has_storage(result) and self.of(result) is Origin.DATA]
        if not results:
            return
        made_of = [member for member in map(self.member, inputs) if member is not None]
        made_as = hash((str(func), *(member.name for member in made_of), repr(without_tensors((args, kwargs)))))
        roots = frozenset().union(*(member.roots for member in made_of))
        for result in results:
            size = made_of[0].size if made_of and name in moves.COPIES else width(result) * result.numel()
            self.add(origin, result, made_as, size, roots)
