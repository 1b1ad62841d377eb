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
        # the mark of a member is its origin
        self._known = StorageSet()
        # (module, name) of a buffer -> the memory it lay in when the model was called
        self._places: dict[tuple[int, str], int] = {}
        self.state: set[Hashable] = set()
        """buffers and parameters that the model was seen to write"""

    def of(self, tensor: Tensor) -> Origin:
        if not has_storage(tensor):
            return Origin.DATA
        key = storage_key(tensor)
        known = self.known(key)
        if known is not None:
            return known.mark
        if isinstance(tensor, nn.Parameter):
            # of a lazy module, or of one that was changed during its own call
            self.add(Origin.WEIGHT, tensor, key, width(tensor) * tensor.numel())
            return Origin.WEIGHT
        return Origin.DATA

    @property
    def members(self) -> dict[int, Member]:
        """What is known, by memory."""
        return self._known.members

    def known(self, memory: int) -> Member | None:
        """Return what is known of a memory, as `storage_key` names it; its mark is the origin. None for data."""
        return self._known.members.get(memory)

    def member(self, tensor: Tensor) -> Member | None:
        """Return what is known of a tensor that is no data."""
        return self.known(storage_key(tensor)) if has_storage(tensor) else None

    def add(
        self,
        origin: Origin,
        tensor: Tensor,
        name: Hashable,
        size: int,
        roots: frozenset[Hashable] = frozenset(),
    ) -> None:
        self._known.add(tensor, name, size, roots, origin)

    def discard(self, tensor: Tensor) -> None:
        """From now on it is data."""
        self._known.discard(tensor)

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
        if type(weight) is nn.Parameter and has_storage(weight):
            # nearly always it is known
            known = self.known(storage_key(weight))
            if known is not None and known.mark is Origin.WEIGHT:
                return
        for part in plain_tensors(weight):
            key = storage_key(part)
            # one that a forward pass has written to is a state, see `write`
            known = self.known(key)
            if not ((known and known.mark is Origin.WEIGHT) or (key, "") in self.state):
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
            known = self.known(key)
            if known is None or known.mark is not Origin.BUFFER:
                self.add(Origin.BUFFER, part, key, width(part) * part.numel(), frozenset((place,)))

    def write(self, tensor: Tensor) -> None:
        """An operator of the model has written data to `tensor`: it is no longer prepared.

        A parameter or buffer stays a weight where it enters a product, and the work on it counts.
        """
        origin, member = self.of(tensor), self.member(tensor)
        if member is None:
            return
        if origin is Origin.BUFFER:
            self.state |= member.roots
        elif origin is Origin.WEIGHT and member.name == storage_key(tensor):
            self.state.add((member.name, ""))
            roots = frozenset(((member.name, ""),))
            self.add(Origin.BUFFER, tensor, member.name, width(tensor) * tensor.numel(), roots)
        else:
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
        if name in moves.STATE_MAKERS and name != "empty_like":
            return Origin.DATA
        origin = Origin.WEIGHT
        for tensor in inputs:
            origin = min(origin, self.of(tensor))
            if origin is Origin.DATA:
                return origin
        if origin is Origin.WEIGHT and name in moves.DRAWS and func._schema.is_mutable:
            # a lazy module makes its parameters
            return Origin.WEIGHT
        if name in moves.DRAWS or name == "empty_like" or (origin is Origin.WEIGHT and name in moves.RANGES):
            # what is drawn anew in each pass is prepared by nobody, though it has the shape of a weight
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
        # a buffer of noise is what was drawn last
        is_new = name in moves.DRAWS and origin is Origin.CONSTANT
        results = [result for result in results if has_storage(result) and (is_new or self.of(result) is Origin.DATA)]
        if not results:
            return
        made_of = [member for member in map(self.member, inputs) if member is not None]
        made_as = hash((str(func), *(member.name for member in made_of), repr(without_tensors((args, kwargs)))))
        roots = frozenset().union(*(member.roots for member in made_of))
        for result in results:
            size = made_of[0].size if made_of and name in moves.COPIES else width(result) * result.numel()
            self.add(origin, result, made_as, size, roots)
