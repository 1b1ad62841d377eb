"""Reads a text with a model in whole numbers, and keeps what it did: spikes, saturations."""

from typing import NamedTuple

import numpy as np
import torch

from .program import QUANTITIES, SITES, Program, empty_state
from .step import read

OUTSIDE = "outside blocks"
HEAD_SITE = "head_neuron"


class Reading(NamedTuple):
    """logits (T, V), float64: the whole numbers at their places; site -> spikes (T, channels), int8."""

    logits: torch.Tensor
    spikes: dict[str, np.ndarray]


class IntegerReader:
    """A text, read piece by piece in whole numbers; what is carried stays here.

    `fired` and `units`: site -> how often each of its neurons fired, and how many unit spikes it emitted (channels,).
    """

    def __init__(self, program: Program):
        self.program, self.tokens_read = program, 0
        self._state = empty_state(program)
        L, _ = program.threshold.shape
        self._saturations = np.zeros((L + 1, len(QUANTITIES)), np.int64)
        self.fired: dict[str, np.ndarray] = {}
        self.units: dict[str, np.ndarray] = {}

    def read(self, tokens: np.ndarray) -> Reading:
        """Return what the model makes of the next tokens (T,); ValueError if one is outside the vocabulary."""
        program, T = self.program, len(tokens)
        (L, N), (C, V) = program.threshold.shape, program.head.shape
        ids = np.ascontiguousarray(tokens, dtype=np.int64)
        if T and not 0 <= ids.min() <= ids.max() < V:
            raise ValueError(f"token ids lie from {ids.min()} to {ids.max()}; the vocabulary is [0, {V})")
        logits, spikes = np.empty((T, V), np.int64), np.empty((T, L, N), np.int8)
        heads = np.empty((T, C), np.int8)
        read(program, self._state, ids, logits, spikes, heads, self._saturations)
        named = {f"blocks.{layer}.{site}": spikes[:, layer, at] for layer in range(L) for site, at in places(C, N)}
        if program.head_levels:
            named[HEAD_SITE] = heads
        for name, emitted in named.items():
            wide = np.abs(emitted.astype(np.int64))
            self.fired[name] = self.fired.get(name, 0) + (wide != 0).sum(axis=0)
            self.units[name] = self.units.get(name, 0) + wide.sum(axis=0)
        self.tokens_read += T
        return Reading(torch.from_numpy(logits).double() / 2.0**program.logit_places, named)

    def saturations(self) -> dict[str, dict[str, int]]:
        """Return layer -> quantity -> how often it was cut at its limit, without those that never were."""
        layers = [*(f"blocks.{layer}" for layer in range(len(self._saturations) - 1)), OUTSIDE]
        found = {}
        for layer, counts in zip(layers, self._saturations.tolist(), strict=True):
            cut = {quantity: count for quantity, count in zip(QUANTITIES, counts, strict=True) if count}
            if cut:
                found[layer] = cut
        return found


def places(channels: int, neurons: int) -> list[tuple[str, slice]]:
    """Return (site, where its neurons lie among those of a block), in order."""
    last = len(SITES) - 1
    return [
        (site, slice(at * channels, (at + 1) * channels if at < last else neurons)) for at, site in enumerate(SITES)
    ]
