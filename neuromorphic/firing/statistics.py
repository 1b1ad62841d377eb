"""Streaming firing statistics: how often, where, how regularly and how jointly the neurons of each layer fire.

Only whole numbers are added up, so chunks, batches and dtypes change nothing. Memory depends on the sizes of the model,
and on the rows of the batch whose spike trains go on; never on the number of tokens. Nothing is drawn here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST_INTERVAL = 64
"""inter-spike intervals, in tokens, that have a bin of their own; longer ones share the bin after"""
RATE_BINS, CORRELATION_BINS = 50, 40
"""equal bins of firing rates over [0, 1] and of correlations over [-1, 1]; the last bin is closed"""


def sample_neurons(n_neurons: int, sample: int, seed: int = 0) -> np.ndarray:
    """Return min(sample, n_neurons) distinct neurons in ascending order; the same for the same three numbers."""
    return np.sort(np.random.default_rng(seed).choice(n_neurons, min(sample, n_neurons), replace=False))


def raster(spikes: Tensor, neurons: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, rows): event i happened at token tokens[i] in row rows[i] of a raster plot, ordered by token.

    Args:
        spikes: (T, C); a spike is a nonzero.
        neurons: rows of the plot, at most C are used; row r shows neuron sample_neurons(C, neurons, seed)[r].

    Raises:
        ValueError: spikes are not (T, C), or fewer than one neuron is asked for.
    """
    if spikes.dim() != 2 or neurons < 1:
        raise ValueError(
            f"raster needs spikes (T, C) and at least 1 neuron, got {tuple(spikes.shape)} and {neurons}; take one "
            f"row of a batch"
        )
    rows = sample_neurons(spikes.shape[1], neurons, seed)
    return np.nonzero((spikes.detach() != 0).cpu().numpy()[:, rows])


@dataclass(frozen=True, kw_only=True)
class FiringTotal:
    """Several layers together, every neuron counted equally."""

    tokens: int
    neurons: int
    firing_rate: float
    dead: int
    saturated: int


@dataclass(frozen=True, kw_only=True)
class Synchrony:
    """Pearson correlations between the sampled neurons of a layer, at the same token, pooled over all tokens."""

    correlations: np.ndarray
    """(pairs,) in [-1, 1]"""
    neurons: int
    """sampled neurons whose spike trains vary"""
    constant: int
    """sampled neurons left out, for they fired never or always and correlate with nothing"""

    @property
    def mean(self) -> float | None:
        """Mean over the pairs; None if there is no pair."""
        return float(self.correlations.mean()) if self.correlations.size else None

    @property
    def histogram(self) -> np.ndarray:
        """Pairs by correlation, CORRELATION_BINS bins."""
        return np.histogram(self.correlations, CORRELATION_BINS, (-1.0, 1.0))[0]

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "neurons": self.neurons,
            "constant": self.constant,
            "histogram": self.histogram.tolist(),
        }


class FiringStatistics:
    """Firing statistics of every layer of a model, fed chunk by chunk.

    Args:
        vocab_size: also keep rates by token id; `update` then needs ids. None: do not.
        n_positions: bins of the rate by position; the last one holds position n_positions - 1 and all later ones.
        sample: neurons per layer whose synchrony is measured. Layers of the same width share the sample.
        seed: of that sample.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, vocab_size: int | None = None, n_positions: int = 1024, sample: int = 64, seed: int = 0):
        if n_positions < 1 or sample < 0 or (vocab_size is not None and vocab_size < 1):
            raise ValueError(
                f"want n_positions >= 1, sample >= 0, vocab_size >= 1 or None; got {n_positions}, {sample}, "
                f"{vocab_size}"
            )
        self.vocab_size, self.n_positions, self.sample, self.seed = vocab_size, n_positions, sample, seed
        self.tokens = 0
        self._layers: dict[str, LayerStatistics] = {}
        self._clock: np.ndarray | None = None

    def update(
        self,
        spikes: Mapping[str, Tensor],
        *,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        start: int = 0,
        continued: bool = False,
    ) -> None:
        """Add one chunk of a batch of sequences. A refused chunk leaves the statistics as they were.

        Args:
            spikes: layer -> (B, T, C) whole numbers of any dtype on any device, e.g. 0/1 or -1/0/1; a spike is a
                nonzero. The same layers and widths in every update.
            ids: (B, T) token ids, needed if vocab_size was given and otherwise not looked at; anything may stand at
                padding.
            mask: (B, T) bool, False at padding, which counts nowhere. The tokens of a row must stand together, left or
                right.
            start: position of the first token of every row in its sequence; rows that are continued know theirs.
            continued: every row goes on where the same row of the last update ended: its position and its last spikes
                are carried over. The first update has nothing to go on from and begins anew.

        Raises:
            ValueError: shapes, layers, ids, mask or start do not fit, or a value is not a whole number (NaN, 0.3).
        """
        B, T = self._check_layers(spikes)
        live = _check_mask(mask, B, T)
        live_ids = self._check_ids(ids, live)
        clock = self._check_clock(start, continued, B)
        # everything is read before anything is added
        fired = {name: read_spikes(name, values, live) for name, values in spikes.items()}
        offset = clock - live.argmax(1)
        for name, (emitted, level_sum) in fired.items():
            if name not in self._layers:
                C = emitted.shape[2]
                self._layers[name] = LayerStatistics(
                    C, self.n_positions, self.vocab_size, sample_neurons(C, self.sample, self.seed)
                )
            self._layers[name].add(emitted, level_sum, live, offset, live_ids, continued)
        self.tokens += int(live.sum())
        self._clock = clock + live.sum(1)

    @property
    def layers(self) -> dict[str, "LayerStatistics"]:
        """Layer -> statistics, in the order of the first update.

        Raises:
            ValueError: no token was seen.
        """
        if not self.tokens:
            raise ValueError(
                "no token has been seen, so nothing has a rate; call update(spikes) with at least one token that is "
                "not padding"
            )
        return dict(self._layers)

    def total(self, layers: Iterable[str] | None = None) -> FiringTotal:
        """Return the total over `layers`, all by default.

        Raises:
            ValueError: no token was seen, or `layers` is empty or names a layer that is not there.
        """
        chosen = list(self._choose(layers).values())
        neurons = sum(layer.neurons for layer in chosen)
        return FiringTotal(
            tokens=self.tokens,
            neurons=neurons,
            firing_rate=sum(layer.spikes for layer in chosen) / (self.tokens * neurons),
            dead=sum(layer.dead for layer in chosen),
            saturated=sum(layer.saturated for layer in chosen),
        )

    def to_dict(self, layers: Iterable[str] | None = None, arrays: bool = False) -> dict[str, Any]:
        """Return total and layers as plain JSON values; `arrays` adds what is per neuron, position and token id. Raises
        as `total`."""
        chosen = self._choose(layers)
        return {
            "total": asdict(self.total(chosen)),
            "layers": {name: layer.to_dict(arrays) for name, layer in chosen.items()},
        }

    def _choose(self, layers: Iterable[str] | None) -> dict[str, "LayerStatistics"]:
        known = self.layers
        chosen = list(known if layers is None else dict.fromkeys(layers))
        missing = [name for name in chosen if name not in known]
        if missing or not chosen:
            raise ValueError(f"want some of the layers {', '.join(known)}; got {', '.join(missing) or 'none'}")
        return {name: known[name] for name in chosen}

    def _check_layers(self, spikes: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return (B, T), which all layers share."""
        if not spikes:
            raise ValueError("spikes holds no layer; a dense model has no firing statistics, so do not ask for them")
        first, shape = next((name, tuple(values.shape)) for name, values in spikes.items())
        for name, values in spikes.items():
            if values.dim() != 3 or 0 in values.shape:
                raise ValueError(f"{name} is {tuple(values.shape)}; want (B, T, C) with no empty side")
            if tuple(values.shape[:2]) != shape[:2]:
                raise ValueError(
                    f"{name} is {tuple(values.shape)} and {first} is {shape}; all layers of one update must share B "
                    f"and T"
                )
            if name in self._layers and values.shape[2] != self._layers[name].neurons:
                raise ValueError(
                    f"{name} has {values.shape[2]} neurons and had {self._layers[name].neurons}; one "
                    f"FiringStatistics per model"
                )
        if self._layers and spikes.keys() != self._layers.keys():
            raise ValueError(
                f"got the layers {', '.join(spikes)} and before {', '.join(self._layers)}; give the same in every "
                f"update"
            )
        return shape[:2]

    def _check_ids(self, ids: Tensor | None, live: np.ndarray) -> np.ndarray | None:
        """Return the ids of the tokens that are not padding, (N,), or None if rates by id are not wanted."""
        if self.vocab_size is None:
            return None
        if ids is None:
            raise ValueError(
                f"rates by token id were asked for (vocab_size={self.vocab_size}), but ids is None; give ids or no "
                f"vocab_size"
            )
        if tuple(ids.shape) != live.shape or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                f"ids are {ids.dtype} {tuple(ids.shape)}; want whole numbers {live.shape}, one for each token of spikes"
            )
        tokens = ids.cpu().numpy()[live].astype(np.int64)
        outside = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if outside.size:
            raise ValueError(
                f"id {outside[0]} lies outside the vocabulary of {self.vocab_size}; mask padding, or give the "
                f"tokenizer's vocab_size"
            )
        return tokens

    def _check_clock(self, start: int, continued: bool, B: int) -> np.ndarray:
        """Return the position of the next token of every row, (B,)."""
        if start < 0:
            raise ValueError(f"start is {start}; positions begin at 0")
        if not continued or self._clock is None:
            return np.full(B, start)
        if len(self._clock) != B:
            raise ValueError(
                f"{B} rows cannot continue {len(self._clock)}; keep the batch, or give continued=False for new "
                f"sequences"
            )
        if start and (self._clock != start).any():
            raise ValueError(
                f"start is {start}, but the rows go on at {sorted(set(self._clock.tolist()))}; leave start out when "
                f"continued"
            )
        return self._clock


class RateBy:
    """The firing rate of a layer by a whole number below `n` that every token has: its position, or its id."""

    def __init__(self, n: int, neurons: int):
        self.neurons = neurons
        self.tokens, self.spikes = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def add(self, numbers: np.ndarray, spikes: np.ndarray) -> None:
        """Add tokens: their numbers (N,) and the spikes of the layer at each, (N,)."""
        np.add.at(self.tokens, numbers, 1)
        np.add.at(self.spikes, numbers, spikes)

    @property
    def rates(self) -> np.ndarray:
        """(n,) in [0, 1]; NaN where there was no token."""
        return np.divide(
            self.spikes, self.tokens * self.neurons, out=np.full(len(self.tokens), np.nan), where=self.tokens > 0
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens.tolist(),
            "rates": [None if rate != rate else rate for rate in self.rates.tolist()],
        }


class LayerStatistics:
    """What one layer of `neurons` neurons did at the tokens seen; all counts are exact int64."""

    def __init__(self, neurons: int, n_positions: int, vocab_size: int | None, sampled_neurons: np.ndarray):
        self.neurons, self.sampled_neurons = neurons, sampled_neurons
        self.tokens, self.level_sum, self.interval_sum = 0, 0, 0
        self.spike_counts = np.zeros(neurons, np.int64)
        """spikes of each neuron, (C,)"""
        self.by_position = RateBy(n_positions, neurons)
        """the last bin holds position n_positions - 1 and all later ones"""
        self.by_id = None if vocab_size is None else RateBy(vocab_size, neurons)
        self.intervals = np.zeros(LONGEST_INTERVAL + 1, np.int64)
        """entry i: intervals of i + 1 tokens between two successive spikes of one neuron in one sequence; the last
        entry: longer ones"""
        self.coactivations = np.zeros((len(sampled_neurons),) * 2, np.int64)
        """tokens at which both of two sampled neurons fired"""
        self._last_spike: np.ndarray | None = None

    def add(
        self,
        fired: Tensor,
        level_sum: int | None,
        live: np.ndarray,
        offset: np.ndarray,
        ids: np.ndarray | None,
        continued: bool,
    ) -> None:
        """Add what `read_spikes` returned; column t of row b stands at position offset[b] + t; `ids` (N,) of the tokens
        in `live`."""
        B, T, C = fired.shape
        # torch sums bytes into int32 several times faster than booleans into int64
        per_train = fired.view(torch.uint8).sum(1, dtype=torch.int32).numpy().astype(np.int64)
        per_token = fired.view(torch.uint8).sum(2, dtype=torch.int32).numpy().astype(np.int64)[live]
        self.spike_counts += per_train.sum(0)
        self.level_sum += int(per_token.sum()) if level_sum is None else level_sum
        self.tokens += len(per_token)
        self.by_position.add(
            np.minimum(offset[:, None] + np.arange(T), len(self.by_position.tokens) - 1)[live], per_token
        )
        if self.by_id is not None:
            self.by_id.add(ids, per_token)
        # float64 counts exactly up to 2^53, and autocast leaves it alone
        sampled = fired.reshape(B * T, C)[:, self.sampled_neurons].double()
        self.coactivations += (sampled.T @ sampled).numpy().astype(np.int64)
        if not continued or self._last_spike is None:
            self._last_spike = np.full((B, C), -1)
        gaps = _gaps(fired, per_train, offset, self._last_spike)
        self.interval_sum += int(gaps.sum())
        self.intervals += np.bincount(np.minimum(gaps, LONGEST_INTERVAL + 1), minlength=LONGEST_INTERVAL + 2)[1:]

    @property
    def spikes(self) -> int:
        return int(self.spike_counts.sum())

    @property
    def firing_rate(self) -> float:
        """Spikes per neuron and token, in [0, 1]."""
        return self.spikes / (self.tokens * self.neurons)

    @property
    def mean_level(self) -> float:
        """Mean of |value| per neuron and token; the firing rate if all spikes are of height 1."""
        return self.level_sum / (self.tokens * self.neurons)

    @property
    def neuron_rates(self) -> np.ndarray:
        """(C,) in [0, 1]."""
        return self.spike_counts / self.tokens

    @property
    def rate_histogram(self) -> np.ndarray:
        """Neurons by firing rate, RATE_BINS bins; a rate on an edge belongs to the bin above."""
        bins = np.minimum(self.spike_counts * RATE_BINS // self.tokens, RATE_BINS - 1)
        return np.bincount(bins, minlength=RATE_BINS)

    @property
    def dead_neurons(self) -> np.ndarray:
        """Indices of the neurons that never fired."""
        return np.flatnonzero(self.spike_counts == 0)

    @property
    def saturated_neurons(self) -> np.ndarray:
        """Indices of the neurons that fired at every token."""
        return np.flatnonzero(self.spike_counts == self.tokens)

    @property
    def dead(self) -> int:
        return len(self.dead_neurons)

    @property
    def saturated(self) -> int:
        return len(self.saturated_neurons)

    @property
    def mean_interval(self) -> float | None:
        """Tokens between two successive spikes of a neuron; None if no neuron fired twice in one sequence.

        Intervals that the end of a sequence cuts off are unknown, so short sequences make the mean too short.
        """
        return self.interval_sum / int(self.intervals.sum()) if self.interval_sum else None

    @property
    def synchrony(self) -> Synchrony:
        """Pearson correlations of the spike trains (0/1) of all pairs of sampled neurons that vary.

        r_ij = (n c_ij - c_i c_j) / sqrt(c_i (n - c_i) c_j (n - c_j)), with n tokens, c_i spikes of i, c_ij tokens at
        which both fire.
        """
        # int64 holds n^2 up to three billion tokens
        n, counts = self.tokens, self.spike_counts[self.sampled_neurons]
        varying = np.flatnonzero((counts > 0) & (counts < n))
        counts, together = counts[varying], self.coactivations[np.ix_(varying, varying)]
        deviations = np.sqrt(counts * (n - counts))
        matrix = (n * together - np.outer(counts, counts)) / np.outer(deviations, deviations)
        # rounding may pass 1 by one bit, and out of the histogram
        pairs = np.clip(matrix[np.triu_indices(len(varying), 1)], -1.0, 1.0)
        return Synchrony(correlations=pairs, neurons=len(varying), constant=len(self.sampled_neurons) - len(varying))

    def to_dict(self, arrays: bool = False) -> dict[str, Any]:
        """Return plain JSON values; `arrays` adds what is per neuron, position and token id, None where a rate is
        unknown."""
        values = {
            name: getattr(self, name)
            for name in ("tokens", "neurons", "firing_rate", "mean_level", "dead", "saturated", "mean_interval")
        }
        shown = [
            "rate_histogram",
            "intervals",
            *(["neuron_rates", "dead_neurons", "saturated_neurons"] if arrays else []),
        ]
        values |= {name: getattr(self, name).tolist() for name in shown}
        values["synchrony"] = self.synchrony.to_dict()
        if arrays:
            values["by_position"] = self.by_position.to_dict()
            values["by_id"] = None if self.by_id is None else self.by_id.to_dict()
        return values


def read_spikes(name: str, values: Tensor, live: np.ndarray) -> tuple[Tensor, int | None]:
    """Return (fired (B, T, C) bool on the CPU, False at padding; the sum of |value|, or None if every spike is of
    height 1).

    Raises:
        ValueError: a value that counts is not a whole number.
    """
    values = values.detach()
    if not live.all():
        values = values.masked_fill(torch.from_numpy(~live).to(values.device)[..., None], 0)
    if values.dtype == torch.bool:
        return values.cpu(), None
    fired = values != 0
    if torch.equal(values.abs(), fired.to(values.dtype)):
        return fired.cpu(), None
    whole = values.to(torch.int64)
    broken = values[whole.to(values.dtype) != values]
    if broken.numel():
        raise ValueError(
            f"{name} holds {broken[0].item()}; spikes are whole numbers: divide by the height of a spike, or give "
            f"spikes != 0"
        )
    return fired.cpu(), int(whole.abs().sum())


def _check_mask(mask: Tensor | None, B: int, T: int) -> np.ndarray:
    """Return (B, T) bool, False at padding."""
    if mask is None:
        return np.ones((B, T), bool)
    if tuple(mask.shape) != (B, T) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}; want bool {(B, T)}, True at tokens and False at padding"
        )
    live = mask.cpu().numpy()
    # a run of tokens begins where a token follows padding, or the edge
    runs = (np.diff(live.astype(np.int8), axis=1, prepend=0) == 1).sum(1)
    if (runs > 1).any():
        raise ValueError(
            f"mask has padding between the tokens of row {int(runs.argmax())}; pad on the left or on the right"
        )
    return live


def _gaps(fired: Tensor, per_train: np.ndarray, offset: np.ndarray, last_spike: np.ndarray) -> np.ndarray:
    """Return for every spike the tokens since the spike before it in its train (b, c), 0 if it is the first; update
    `last_spike` (B, C)."""
    T, C = fired.shape[1:]
    times = np.flatnonzero(fired.transpose(1, 2).contiguous().numpy())
    trains = np.flatnonzero(per_train)
    lengths = per_train.ravel()[trains]
    ends = lengths.cumsum()
    # time as flatnonzero counts it -> position in the sequence
    shift = offset[trains // C] - trains * T
    before = last_spike.ravel()[trains]
    gaps = np.diff(times, prepend=0)
    gaps[ends - lengths] = np.where(before < 0, 0, times[ends - lengths] + shift - before)
    last_spike.ravel()[trains] = times[ends - 1] + shift
    return gaps
