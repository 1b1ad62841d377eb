"""Texts of one model in one batch: each has a place, a step reads a token of each, a text that leaves makes room.

A text's logits are the same to the last bit, whoever its neighbours are: rows of weights are added up per text in one
order (generate/compiled/places.py), and what cannot be decoded by rows is read text by text.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..generate.compiled.places import PlaceDecoder
from ..generate.engine import Engine, why_not_by_rows
from ..model.network import SpikeGPT
from ..model.state import State


class Batch(Protocol):
    """What holds the states of texts: the first `len(tokens)` places are read in a step."""

    def put(self, place: int, state: State) -> None: ...

    def move(self, source: int, target: int) -> None: ...

    def step(self, tokens: Sequence[int]) -> Tensor: ...


def make_batch(model: SpikeGPT, places: int) -> Batch:
    """Return a batch of `model` with so many places."""
    is_by_rows = model.device.type == "cpu" and not why_not_by_rows(model)
    return PlaceDecoder(model, places) if is_by_rows else OneByOne(model)


class OneByOne:
    """Reads one text after the other, as `generate` reads a single one."""

    def __init__(self, model: SpikeGPT):
        self._engine, self._states = Engine(model), dict[int, State]()

    def put(self, place: int, state: State) -> None:
        self._states[place] = state

    def move(self, source: int, target: int) -> None:
        self._states[target] = self._states.pop(source)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read a token of each text in the first places and return the logits of the next, (texts, vocab_size)."""
        logits = []
        for place, token in enumerate(tokens):
            self._engine.start(self._states[place])
            logits.append(self._engine.step(torch.tensor([token])).cpu())
            state = self._engine.state()
            assert state is not None
            self._states[place] = state
        return torch.cat(logits)
