"""How well a model predicts a text, and how much its neurons fire while it does.

Two protocols. `stream`: the whole text once, in order, the state carried from chunk to chunk, so every token sees all
before it. `windows`: overlapping windows of ctx_len tokens, each from an empty state; only the last `stride` tokens of
a window are scored (all of the first window), so every token but the very first is scored once. The two agree where a
model forgets what lies more than ctx_len - stride tokens back, and where one window holds the whole text.

Every figure is the same sum of nats, divided by a count of the raw text, which no tokenizer changes: bytes, characters
(code points), words (what stands between white space), or words and line ends. The last is how WikiText counts: its
`<eos>` is one more token per line, 245,569 in the test split; lm-eval's word_perplexity leaves line ends out. From one
to the other: perplexity' = perplexity ** (count / count').
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from ..common.errors import SpikegptError
from ..common.progress import Progress
from ..config.values import WINDOW
from ..data.tokenizers import Tokenizer
from ..data.tokens.token_file import count_characters
from ..model.network import EMBEDDING, ModelOutput, SpikeGPT, evaluating
from ..model.state import membranes_of

# windows read at once: so many, or fewer where their logits would be more than this
BATCH, LOGITS = 8, 1 << 26


class NotFinite(SpikegptError):
    """A model whose numbers are NaN or infinite: it predicts nothing, so nothing is measured of it."""


@contextmanager
def named_if_not_finite(run: Path) -> Iterator[None]:
    """Within this block a model that is not finite is named by its `run`."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{run}: {error}; use another checkpoint") from None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Sums over a text, `nats` that of the cross-entropy; the first token is never predicted and counts nowhere."""

    protocol: str
    tokens: int
    bytes: int
    characters: int
    words: int
    line_ends: int
    nats: float
    firing_rates: dict[str, float] = field(default_factory=dict)
    """emitting module -> share of its neurons that fired, over all tokens read, in [0, 1]"""
    unit_spikes: dict[str, float] = field(default_factory=dict)
    """emitting module -> unit spikes per neuron and token read: above the firing rate where a neuron may fire several
    times"""
    synapses: dict[str, int] = field(default_factory=dict)
    """emitting module -> weights of the matrix product that reads its spikes; empty where none does"""

    def __post_init__(self):
        if not math.isfinite(self.nats):
            raise NotFinite(f"the model's cross-entropy is {self.nats}: its weights have diverged")

    @property
    def bits_per_token(self) -> float:
        return self.nats / math.log(2) / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def bits_per_character(self) -> float:
        return self.nats / math.log(2) / max(self.characters, 1)

    @property
    def perplexity(self) -> float:
        """Per token."""
        return perplexity_of(self.nats, self.tokens)

    @property
    def word_perplexity(self) -> float:
        """Per word: what stands between white space."""
        return perplexity_of(self.nats, self.words)

    @property
    def word_and_line_perplexity(self) -> float:
        """Per word or line end, as WikiText counts."""
        return perplexity_of(self.nats, self.words + self.line_ends)

    @property
    def firing_rate(self) -> float | None:
        """See `mean_firing_rate`; None for a dense model."""
        return mean_firing_rate(self.firing_rates, self.synapses)

    @property
    def synops_per_token(self) -> float | None:
        """Unit spikes times the weights that each one reaches; None where no matrix product reads spikes."""
        if not self.synapses:
            return None
        return sum(self.unit_spikes[name] * count for name, count in self.synapses.items())

    def to_dict(self) -> dict[str, Any]:
        units = (
            "bits_per_byte",
            "bits_per_character",
            "bits_per_token",
            "perplexity",
            "word_perplexity",
            "word_and_line_perplexity",
        )
        return {**asdict(self), **{name: getattr(self, name) for name in (*units, "firing_rate", "synops_per_token")}}


def perplexity_of(nats: float, count: int) -> float:
    """Return exp(nats / count)."""
    # a text without a word has one unit; beyond 700, exp overflows
    return math.exp(min(nats / max(count, 1), 700.0))


def mean_firing_rate(rates: dict[str, float], synapses: dict[str, int]) -> float | None:
    """Return the mean of `rates`, by synapses where matrix products read the spikes, else over all neuron layers.

    The binary embedding is not a neuron. None if there is nothing to average.
    """
    if synapses:
        return sum(rates[name] * count for name, count in synapses.items()) / sum(synapses.values())
    neurons = [rate for name, rate in rates.items() if name != EMBEDDING]
    return sum(neurons) / len(neurons) if neurons else None


class _Sums:
    """Running sums of one evaluation."""

    def __init__(self, model: SpikeGPT):
        self.nats, self.tokens_read, self.synapses = 0.0, 0, model.synapses()
        # name -> spikes, unit spikes, channels
        self.spikes: dict[str, tuple[int, float, int]] = {}

    def add(self, logits: Tensor, targets: Tensor, spikes: dict[str, Tensor], tokens_read: int) -> None:
        losses = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none")
        self.nats += losses.double().sum().item()
        self.tokens_read += tokens_read
        for name, spike in spikes.items():
            fired, units, channels = self.spikes.get(name, (0, 0.0, spike.shape[-1]))
            units += spike.abs().sum(dtype=torch.float64).item()
            self.spikes[name] = (fired + int((spike != 0).sum()), units, channels)

    def result(self, protocol: str, tokens: np.ndarray, tokenizer: Tokenizer) -> Evaluation:
        text = tokenizer.decode(tokens[1:])
        characters = count_characters(text)
        rates = {name: fired / channels / self.tokens_read for name, (fired, _, channels) in self.spikes.items()}
        units = {name: units / channels / self.tokens_read for name, (_, units, channels) in self.spikes.items()}
        return Evaluation(
            protocol=protocol,
            tokens=len(tokens) - 1,
            bytes=len(text),
            characters=characters,
            words=sum(1 for _ in re.finditer(r"\S+", text.decode(errors="replace"))),
            line_ends=text.count(b"\n"),
            nats=self.nats,
            firing_rates=rates,
            unit_spikes=units,
            synapses=self.synapses,
        )


@torch.inference_mode()
def evaluate_stream(
    model: SpikeGPT,
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    chunk: int = 1024,
    watch: Callable[[Tensor, ModelOutput], None] | None = None,
) -> Evaluation:
    """Return the evaluation of `tokens` (N,) read once in order, with carried state, `chunk` tokens at a time.

    `watch` is called after every chunk with its ids (1, T) and the model's output.

    Raises:
        SpikegptError: fewer than two tokens.
        ValueError: `chunk` is no whole number of at least 1, or `tokens` are none.
    """
    WINDOW.check("chunk", chunk)
    check_length(tokens)
    sums, state = _Sums(model), None
    device = model.device
    with evaluating(model), Progress("evaluating", len(tokens) - 1, "tokens") as progress:
        for start in range(0, len(tokens) - 1, chunk):
            piece = torch.from_numpy(tokens[start : start + chunk + 1].astype(np.int64)).to(device)
            output = model(piece[None, :-1], state)
            state = output.state
            sums.add(output.logits[0], piece[1:], output.spikes, len(piece) - 1)
            progress.advance(len(piece) - 1)
            if watch is not None:
                watch(piece[None, :-1], output)
    return sums.result(f"stream, carried state, chunks of {chunk}", tokens, tokenizer)


@torch.inference_mode()
def evaluate_windows(
    model: SpikeGPT, tokens: np.ndarray, tokenizer: Tokenizer, ctx_len: int, stride: int, keep_membrane: bool = False
) -> Evaluation:
    """Return the evaluation of `tokens` (N,) in windows of `ctx_len`, the last `stride` of each scored.

    `keep_membrane` starts each window with the membrane potentials of the end of the window before, and all else empty:
    a fault of the published inference script, which does so from its second trial on, to be measured.

    Raises:
        SpikegptError: fewer than two tokens, ctx_len longer than the text, a stride outside [1, ctx_len], or membranes
            to be kept by a model whose neurons carry none, or that has no neurons.
    """
    check_length(tokens)
    WINDOW.check("ctx_len", ctx_len)
    WINDOW.check("stride", stride)
    predicted = len(tokens) - 1
    if not 1 <= ctx_len <= predicted:
        raise SpikegptError(
            f"ctx_len is {ctx_len}, the text has {len(tokens)} tokens; use at most {predicted} and at least 1"
        )
    if not 1 <= stride <= ctx_len:
        raise SpikegptError(f"stride must lie between 1 and ctx_len ({ctx_len}), got {stride}")
    sums, state = _Sums(model), None
    device = model.device
    # the last window is moved back to end with the text; what it has in common with the one before is not scored twice
    starts = [*range(0, predicted - ctx_len, stride), predicted - ctx_len]
    batch_size = 1 if keep_membrane else max(min(BATCH, LOGITS // (ctx_len * model.config.vocab_size)), 1)
    with evaluating(model), Progress("evaluating", predicted, "tokens") as progress:
        scored = 0
        for first in range(0, len(starts), batch_size):
            batch = starts[first : first + batch_size]
            windows = torch.from_numpy(np.stack([tokens[s : s + ctx_len + 1] for s in batch]).astype(np.int64)).to(
                device
            )
            logits, after, spikes = model(windows[:, :-1], state)
            state = membranes_of(after) if keep_membrane else None
            if keep_membrane and not any(isinstance(part, Tensor) for part in tree_leaves(state)):
                raise SpikegptError(
                    "this model has no membranes to keep: it is dense, or its neurons are memoryless; "
                    "leave out --keep-membrane"
                )
            is_new = torch.zeros(len(batch), ctx_len, dtype=torch.bool, device=device)
            for row, start in enumerate(batch):
                is_new[row, max(scored - start, 0) :] = True
                scored = start + ctx_len
            sums.add(logits[is_new], windows[:, 1:][is_new], spikes, windows[:, 1:].numel())
            progress.advance(int(is_new.sum()))
    beginning = "state empty but for the membranes of the window before" if keep_membrane else "empty state"
    return sums.result(f"windows of {ctx_len}, stride {stride}, {beginning}", tokens, tokenizer)


def check_length(tokens: np.ndarray, source: str = "the text") -> None:
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        found = f"{tokens.dtype} {tokens.shape}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise ValueError(f"tokens are {found}; want a numpy array (N,) of whole numbers, as tokenizer.encode gives")
    if len(tokens) < 2:
        raise SpikegptError(
            f"{source} has {len(tokens)} token(s); at least 2 are needed, for the first is never predicted"
        )
