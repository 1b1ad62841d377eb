"""Decoding by rows on the CPU: a packed model, its memory, and the threads that share a token."""

import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ...model.network import SpikeGPT
from ...model.state import State
from . import token_step
from .clock import PARTS, new_clock
from .held import Held
from .rows import Packer, Work, scratch_of
from .team import OPEN, Team

# tokens that are read with each number of threads before one is chosen
TRIED = 5


class RowDecoder:
    """Reads one token of each text with a copy of the weights of `model`; gathers the rows whose input is not 0.

    Of several numbers of `threads` it tries each on the first tokens, and goes on with the fastest: how many that is
    depends on what else the machine does, and no result on how many. If it `has_clock`, its `ticks` say where the time
    goes.
    """

    def __init__(self, model: SpikeGPT, weights: str, threads: Sequence[int], has_clock: bool = False):
        self._step, packer = token_step(model.config.mixer), Packer(model, weights)
        self._network, self._layers = packer.network(), self._step.pack(packer)
        self._shared = self._step.share(self._layers, packer.places)
        self._vocab_size, self._dtype = model.config.vocab_size, self._network.embedding.dtype
        products = self._step.products(self._layers)
        widest = max(model.config.n_embd, *(product.weights.shape[1] for product in products.values()))
        self._gate = np.zeros(1, np.int64)
        clock = new_clock(packer.places) if has_clock else None

        def work(part: int, parts: int) -> Work:
            scratch = scratch_of(model.config.n_embd, widest, self._dtype)
            # the first thread's clock is read; the others' is there because they run the same code
            own = clock if part == 0 or clock is None else clock.copy()
            return Work(Team(part, parts, self._gate), scratch, self._shared, own)

        self._clock = clock
        self._teams = {parts: [work(part, parts) for part in range(parts)] for parts in threads}
        # product by its name in the model -> (packed, layer)
        layers = range(len(model.blocks))
        self._products = {f"blocks.{n}.{name}": (found, n) for name, found in products.items() for n in layers}
        self._products["head"] = (self._network.head, 0)
        self._sites = {name: placed for name, placed in model.sites().items() if placed.products}
        self._name_of = {id(module): name for name, module in model.named_modules()}
        self._tokens_read = 0
        # threads are gone in a forked process
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def take(self, state: State) -> None:
        """Go on from `state`, which is copied."""
        self._layers = self._step.take(self._layers, state)
        texts = len(self._layers[0].shift)
        head_neuron = self._network.head_neuron.with_potentials([], texts)
        self._network = self._network._replace(head_neuron=head_neuron)
        self._ids = np.empty(texts, np.int64)
        self._logits = np.empty((texts, self._vocab_size), self._dtype)
        shared = self._shared._replace(stream=np.zeros((texts, self._layers[0].shift.shape[-1]), self._dtype))
        self._parts = {
            parts: [Held((work._replace(shared=shared), self._network, self._layers)) for work in team]
            for parts, team in self._teams.items()
        }
        # number of threads -> what tokens took with it, of those that may be the fastest
        self._seconds: dict[int, list[float]] = {parts: [] for parts in self._teams}

    def give(self) -> State:
        """Return the state after the last token."""
        return self._step.give(self._layers)

    def step(self, tokens: Tensor) -> Tensor:
        """Return the logits (texts, vocab_size) after one more token of each text, (texts,)."""
        ids = tokens.tolist()
        # in plain Python, that is sooner done than one call of numpy
        if len(ids) != len(self._ids) or min(ids, default=0) < 0 or max(ids, default=0) >= self._vocab_size:
            raise ValueError(
                f"step: want {len(self._ids)} token ids in [0, {self._vocab_size}), one per text, got {ids}"
            )
        self._ids[:] = ids
        parts = self._parts[min(self._seconds, key=lambda tried: len(self._seconds[tried]))]
        self._gate[0], helpers, is_done, started = 0, [], False, time.perf_counter()
        try:
            for part in parts[1:]:
                helpers.append(self._threads().submit(self._run, part))
            self._run(parts[0])
            is_done = True
        finally:
            # where Ctrl-C came before this thread did, the others would wait for it for ever
            if not is_done:
                self._gate[0] = OPEN
            for helper in helpers:
                helper.result()
        if len(self._seconds) > 1:
            self._seconds[len(parts)].append(time.perf_counter() - started)
            self._seconds = fastest(self._seconds)
        self._tokens_read += len(ids)
        return torch.from_numpy(self._logits.copy())

    def _run(self, part: Held) -> None:
        self._step.decode(part, self._ids, self._logits)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(max(self._teams) - 1, thread_name_prefix="spikegpt-decode")
        return self._pool[1]

    def ticks(self) -> dict[str, int]:
        """Return part of a token -> the first thread's ticks of the processor's counter in it, over all tokens.

        Products are parts under their names in the first block. "now" is the counter at the end of the last token.
        """
        if self._clock is None:
            raise ValueError("this decoder has no clock; make it with has_clock=True")
        products = {product.place: name for name, (product, layer) in self._products.items() if layer == 0}
        names = [*PARTS, *(products[place].removeprefix("blocks.0.") for place in sorted(products))]
        return {"now": int(self._clock[0]), **dict(zip(names, self._clock[1:].tolist(), strict=True))}

    def spike_counts(self) -> dict[str, int]:
        """Return layer of neurons that products read -> how many of them fired, over all tokens."""
        counts = {}
        for name, placed in self._sites.items():
            product, layer = self._products[self._name_of[id(placed.products[0])]]
            counts[name] = int(self._shared.inputs_read[product.place, layer])
        return counts

    def density(self) -> float:
        """Return the share of the weights that was read per token; 1 before any token was."""
        if not self._tokens_read:
            return 1.0
        read = whole = 0
        for product, layer in self._products.values():
            inputs, outputs = product.weights.shape[1:]
            read += int(self._shared.inputs_read[product.place, layer]) * outputs
            whole += inputs * outputs
        return read / whole / self._tokens_read


def fastest(seconds: dict[int, list[float]]) -> dict[int, list[float]]:
    """Return the one number of threads whose median is least, once each has been tried on TRIED tokens; else all."""
    if min(map(len, seconds.values())) < TRIED:
        return seconds
    threads = min(seconds, key=lambda tried: statistics.median(seconds[tried]))
    return {threads: seconds[threads]}
