"""Decoding by rows for texts that come and go: each has a place, and is read to the same bit beside others and alone.

A sum of rows is one column after the other in one order, however many texts there are (sums.py); so what a text's
logits are does not depend on its neighbours.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...model.network import SpikeGPT
from ...model.state import State, select_texts
from . import token_step
from .drawing import only_reading
from .held import Held
from .rows import Packer, Work, memory_of_texts, scratch_of
from .team import Team


class PlaceDecoder:
    """Reads one token of each text in the first places, with a copy of the weights of `model`, in one thread.

    Args:
        model: one that is decoded by rows (engine.why_not_by_rows).
        places: texts that there is room for.
    """

    def __init__(self, model: SpikeGPT, places: int):
        self._step, packer = token_step(model.config.mixer), Packer(model, "float32")
        network, layers = packer.network(), self._step.pack(packer)
        with torch.inference_mode():
            some = model(torch.zeros(1, 1, dtype=torch.long)).state
        self._layers = self._step.take(layers, select_texts(some, [0] * places))
        self._network = network._replace(head_neuron=network.head_neuron.with_potentials([], places))
        products = self._step.products(self._layers)
        widest = max(model.config.n_embd, *(product.weights.shape[1] for product in products.values()))
        self._scratch = scratch_of(places, model.config.n_embd, widest, network.embedding.dtype)
        self._shared = self._step.share(self._layers, places)
        self._inputs_read = np.zeros((packer.places, len(model.blocks)), np.int64)
        self._ids = np.zeros(places, np.int64)
        self._logits = np.zeros((places, model.config.vocab_size), network.embedding.dtype)
        # how many texts are read -> what the compiled code sees of them
        self._parts: dict[int, Held] = {}

    def put(self, place: int, state: State) -> None:
        """Let the text in `place` go on from `state`, of one text, which is copied."""
        here = self._at(place)
        for kept, new in zip(_arrays(here), _arrays(self._step.take(here, state)), strict=True):
            if kept is not new:
                kept[...] = new

    def move(self, source: int, target: int) -> None:
        """Let the text in place `source` go on in place `target`."""
        for old, new in zip(_arrays(self._at(source)), _arrays(self._at(target)), strict=True):
            # a memory that this model has no use for has one row, whatever the places
            if old is not new and len(old) and len(new):
                new[...] = old

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read a token of each text in the first places and return the logits of the next, (texts, vocab_size)."""
        texts = len(tokens)
        if texts not in self._parts:
            self._parts[texts] = self._part(slice(0, texts))
        self._ids[:texts] = tokens
        self._step.decode(self._parts[texts], 0)
        return torch.from_numpy(self._logits[:texts].copy())

    def _at(self, place: int) -> Any:
        return self._step.of_texts(self._layers, slice(place, place + 1))

    def _part(self, texts: slice) -> Held:
        found, shared = self._scratch, type(self._shared)(*(part[texts] for part in self._shared))
        own = {name: getattr(found, name)[texts] for name in ("y", "active", "amount", "listed")}
        work = Work(Team(0, 1, np.zeros(1, np.int64)), found._replace(**own), shared, self._inputs_read, None)
        writing = only_reading(self._ids[texts], self._logits[texts])
        network, layers = memory_of_texts(self._network, (), texts), self._step.of_texts(self._layers, texts)
        return Held((work, network, layers, writing))


def _arrays(rows: Any) -> Iterator[np.ndarray]:
    """Yield the arrays in a tree of NamedTuples."""
    if isinstance(rows, np.ndarray):
        yield rows
    elif isinstance(rows, tuple):
        for part in rows:
            yield from _arrays(part)
