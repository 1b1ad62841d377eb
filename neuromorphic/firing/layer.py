"""What the neurons of one layer did: counts that only grow, and the rates, intervals and correlations that follow.

Only whole numbers are added up, so chunks and batches change nothing. What may be added is checked in `statistics.py`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST_INTERVAL = 64
"""inter-spike intervals, in tokens, that have a bin of their own; longer ones share the bin after"""
RATE_BINS, CORRELATION_BINS = 50, 40
"""equal bins of firing rates over [0, 1] and of correlations over [-1, 1]; the last bin is closed"""


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
        """Add what `read_spikes` returned.

        Column t of row b stands at position offset[b] + t; `ids` (N,) are of the tokens in `live`.
        """
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
            assert ids is not None, "rates by id without ids"
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
        """Return plain JSON values, None where a rate is unknown.

        `arrays` adds what is per neuron, position and token id.
        """
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


def _gaps(fired: Tensor, per_train: np.ndarray, offset: np.ndarray, last_spike: np.ndarray) -> np.ndarray:
    """Return for every spike the tokens since the one before it in its train (b, c), 0 if it is the first.

    Updates `last_spike` (B, C).
    """
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
