"""Decoding by rows on the CPU: a packed model, its memory, and the threads that share a token."""

import itertools
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...model.network import SpikeGPT
from ...model.state import State
from . import token_step
from .clock import PARTS, new_clock
from .drawing import MOST_TURNS, Settings, new_draw, of_texts, only_reading
from .head import is_screened, screen_of
from .held import Held
from .rows import Packer, Work, memory_of_texts, scratch_of
from .team import OPEN, Team

# tokens that are read with each number of threads before one is chosen
TRIED = 5
# what a call that writes several tokens may take
TURN_SECONDS = 0.02


class Sharing(NamedTuple):
    """How many threads share the work of a token, and whether each does all of its own texts, or its columns of all."""

    threads: int
    by_text: bool

    def __str__(self) -> str:
        if self.threads == 1:
            return "1"
        return f"{self.threads}, each {'its texts' if self.by_text else 'its columns'}"


class RowDecoder:
    """Reads one token of each text with a copy of the weights of `model`; gathers the rows whose input is not 0.

    Of several numbers of `threads` it tries each on the first tokens, and goes on with the fastest: how many that is
    depends on what else the machine does, and no result on how many. So it does, where there are several texts, with
    each of `text_threads`, of which none waits for another before its texts are done. If it `has_clock`, its `ticks`
    say where the time goes. With `top_k` logits of a large vocabulary may be -inf that are not among so many largest.
    """

    def __init__(
        self,
        model: SpikeGPT,
        weights: str,
        threads: Sequence[int],
        text_threads: Sequence[int] = (),
        has_clock: bool = False,
        top_k: int | None = None,
    ):
        self._step, packer = token_step(model.config.mixer), Packer(model, weights)
        self._network, self._layers = packer.network(), self._step.pack(packer)
        if top_k is not None and is_screened(self._network.head, top_k):
            self._network = self._network._replace(screen=screen_of(self._network.head, top_k, packer.new_place()))
        self._vocab_size, self._dtype = model.config.vocab_size, self._network.embedding.dtype
        self._sharings = [Sharing(count, False) for count in threads]
        self._sharings += [Sharing(count, True) for count in text_threads if count > 1]
        products = self._step.products(self._layers)
        self._widest = max(model.config.n_embd, *(product.weights.shape[1] for product in products.values()))
        self._gate = np.zeros(1, np.int64)
        self._most = max(sharing.threads for sharing in self._sharings)
        # one for each thread: (products, L)
        self._inputs_read = np.zeros((self._most, packer.places, len(model.blocks)), np.int64)
        clock = new_clock(packer.places) if has_clock else None
        # the first thread's clock is read; the others' are there because they run the same code
        self._clocks = [clock, *(None if clock is None else clock.copy() for _ in range(1, self._most))]
        # product by its name in the model -> (packed, layer)
        layers = range(len(model.blocks))
        self._products = {f"blocks.{n}.{name}": (found, n) for name, found in products.items() for n in layers}
        for name in model.blocks[0].att.unread_in_first:
            self._products.pop(f"blocks.0.att.{name}", None)
        self._products["head"] = (self._network.head, 0)
        self._names = {found.place: name for name, found in products.items()} | {self._network.head.place: "head"}
        if self._network.screen is not None:
            self._names[self._network.screen.codes.place] = "codes of the head"
        # layer of neurons -> the first of the products that read it
        self._readers = {
            name: name.removesuffix(placed.site.name) + placed.site.products[0]
            for name, placed in model.sites().items()
            if placed.products
        }
        self._tokens_read = 0
        # threads are gone in a forked process
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def take(self, state: State) -> None:
        """Go on from `state`, which is copied."""
        self._layers = self._step.take(self._layers, state)
        texts = len(self._layers[0].shift)
        head_neuron = self._network.head_neuron.with_potentials([], texts)
        self._network = self._network._replace(head_neuron=head_neuron)
        self._writing = only_reading(np.zeros(texts, np.int64), np.empty((texts, self._vocab_size), self._dtype))
        self._divide()
        # how the work is shared -> what tokens took with it, of those that may be the fastest
        self._seconds: dict[Sharing, list[float]] = {sharing: [] for sharing in self._parts}
        self._seconds_of_a_token = TURN_SECONDS

    def _divide(self) -> None:
        texts = len(self._writing.ids)
        self._parts = {
            sharing: self._by_text(sharing.threads) if sharing.by_text else self._by_columns(sharing.threads)
            for sharing in self._sharings
            if not sharing.by_text or sharing.threads <= texts
        }

    def _by_columns(self, threads: int) -> list[Held]:
        texts = slice(0, len(self._writing.ids))
        shared = self._step.share(self._layers, texts.stop)
        return [self._part(texts, Team(number, threads, self._gate), number, shared) for number in range(threads)]

    def _by_text(self, threads: int) -> list[Held]:
        cuts = [len(self._writing.ids) * number // threads for number in range(threads + 1)]
        return [
            self._part(slice(first, last), Team(0, 1, self._gate), number, self._step.share(self._layers, last - first))
            for number, (first, last) in enumerate(itertools.pairwise(cuts))
        ]

    def _part(self, texts: slice, team: Team, number: int, shared: Any) -> Held:
        channels = self._network.embedding.shape[1]
        scratch = scratch_of(texts.stop - texts.start, channels, self._widest, self._dtype)
        work = Work(team, scratch, shared, self._inputs_read[number], self._clocks[number])
        network = memory_of_texts(self._network, (), texts)
        return Held((work, network, self._step.of_texts(self._layers, texts), of_texts(self._writing, texts)))

    def give(self) -> State:
        """Return the state after the last token."""
        return self._step.give(self._layers)

    def step(self, tokens: Tensor) -> Tensor:
        """Return the logits (texts, vocab_size) after one more token of each text, (texts,)."""
        ids = tokens.tolist()
        # in plain Python, that is sooner done than one call of numpy
        if len(ids) != len(self._writing.ids) or min(ids, default=0) < 0 or max(ids, default=0) >= self._vocab_size:
            raise ValueError(
                f"step: want {len(self._writing.ids)} token ids in [0, {self._vocab_size}), one per text, got {ids}"
            )
        self._writing.ids[:] = ids
        self._run(0)
        return torch.from_numpy(self._writing.logits.copy())

    def draw_with(self, settings: Settings, may_be: np.ndarray, seen: np.ndarray) -> None:
        """Let `write` draw the tokens of the texts like this from now on, until another state is taken.

        Args:
            settings: temperature, top_k, top_p, repetition penalty.
            may_be: (vocab_size,) bool, the tokens that exist.
            seen: (texts, vocab_size) bool, those that a text has; tokens that are drawn are noted in it.
        """
        draw, room = new_draw(settings, may_be), np.zeros((len(seen), MOST_TURNS))
        self._writing = self._writing._replace(draw=draw, seen=seen, uniforms=room, drawn=room.astype(np.int64))
        self._divide()

    def turns(self) -> int:
        """Return how many tokens are written by one call that takes no longer than a reader notices."""
        is_tried = len(self._seconds) == 1
        return max(1, min(int(TURN_SECONDS / self._seconds_of_a_token), MOST_TURNS)) if is_tried else 1

    def write(self, logits: Tensor, uniforms: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Draw a token of each text from logits (texts, vocab_size) and read it, again and again.

        Args:
            uniforms: (texts, at most MOST_TURNS), numbers in [0, 1), one for each token.

        Returns:
            The tokens, (texts, so many), from -1 on where a logit was NaN or infinite; the logits after the last.
        """
        turns = uniforms.shape[1]
        self._writing.logits[:] = logits.detach().numpy()
        self._writing.uniforms[:, :turns] = uniforms
        self._run(turns)
        return self._writing.drawn[:, :turns].copy(), torch.from_numpy(self._writing.logits.copy())

    def _run(self, turns: int) -> None:
        """Let all threads do their parts of a token, or of so many."""
        sharing = min(self._seconds, key=lambda tried: len(self._seconds[tried]))
        parts = self._parts[sharing]
        self._gate[0], helpers, is_done, started = 0, [], False, time.perf_counter()
        try:
            for part in parts[1:]:
                helpers.append(self._threads().submit(self._step.decode, part, turns))
            self._step.decode(parts[0], turns)
            is_done = True
        finally:
            # where Ctrl-C came before this thread did, the others would wait for it for ever
            if not is_done:
                self._gate[0] = OPEN
            for helper in helpers:
                helper.result()
        self._seconds_of_a_token = (time.perf_counter() - started) / max(turns, 1)
        if len(self._seconds) > 1:
            self._seconds[sharing].append(self._seconds_of_a_token)
            self._seconds = fastest(self._seconds)
        self._tokens_read += len(self._writing.ids) * max(turns, 1)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self._most - 1, thread_name_prefix="spikegpt-decode")
        return self._pool[1]

    def sharings(self) -> list[str]:
        """Return the ways to share a token that may still be the fastest, in words; one, once all were tried."""
        return [str(sharing) for sharing in self._seconds]

    def ticks(self) -> dict[str, int]:
        """Return part of a token -> the first thread's ticks of the processor's counter in it, over all tokens.

        Products are parts under their names in a block. "now" is the counter at the end of the last token.
        """
        clock = self._clocks[0]
        if clock is None:
            raise ValueError("this decoder has no clock; make it with has_clock=True")
        names = [*PARTS, *(self._names[place] for place in sorted(self._names))]
        return {"now": int(clock[0]), **dict(zip(names, clock[1:].tolist(), strict=True))}

    def spike_counts(self) -> dict[str, int]:
        """Return layer of neurons that products read -> how many of them fired, over all tokens."""
        counts, read = {}, self._inputs_read.sum(axis=0)
        for name, reader in self._readers.items():
            product, layer = self._products[reader]
            counts[name] = int(read[product.place, layer])
        return counts

    def density(self) -> float:
        """Return the share of the weights that was read per token; 1 before any token was."""
        if not self._tokens_read:
            return 1.0
        read, whole, inputs_read = 0, 0, self._inputs_read.sum(axis=0)
        for product, layer in self._products.values():
            inputs, outputs = product.weights.shape[1:]
            read += int(inputs_read[product.place, layer]) * outputs
            whole += inputs * outputs
        return read / whole / self._tokens_read


def fastest(seconds: dict[Sharing, list[float]]) -> dict[Sharing, list[float]]:
    """Return the one way to share whose median is least, once each has been tried on TRIED tokens; before, all."""
    if min(map(len, seconds.values())) < TRIED:
        return seconds
    sharing = min(seconds, key=lambda tried: statistics.median(seconds[tried]))
    return {sharing: seconds[sharing]}
