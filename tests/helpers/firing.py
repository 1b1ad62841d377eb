"""Spikes to measure, and what was measured of them, in the order of plain loops."""

import numpy as np
import torch
from torch import tensor

from neuromorphic.firing.layer import LONGEST_INTERVAL
from neuromorphic.firing.statistics import FiringStatistics

B, T, C, V = 3, 37, 11, 5
NAN = float("nan")


def random_spikes(seed=0, b=B, t=T, c=C, rate=0.3, levels=(1.0,)):
    """(b, t, c) with neuron 0 dead and neuron 1 saturated."""
    generator = torch.Generator().manual_seed(seed)
    heights = torch.tensor(levels)[torch.randint(len(levels), (b, t, c), generator=generator)]
    spikes = heights * (torch.rand(b, t, c, generator=generator) < rate)
    spikes[..., 0], spikes[..., 1] = 0, 1
    return spikes


def random_ids(seed=0):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def measured(*updates, **options):
    """The layer "a" after one update per (spikes, keyword arguments)."""
    statistics = FiringStatistics(**options)
    for spikes, keywords in updates:
        statistics.update({"a": spikes}, **keywords)
    return statistics.layers["a"]


def train(text):
    """One neuron in one sequence: "x" is a spike; (1, T, 1)."""
    return tensor([float(mark == "x") for mark in text])[None, :, None]


def everything(layer):
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in state(layer).items()}


def state(layer):
    """All accumulators of a layer that outlive a sequence, by name."""
    flat = {
        name: value for name, value in vars(layer).items() if not name.startswith("_") and not hasattr(value, "rates")
    }
    for name in ("by_position", "by_id"):
        flat |= (
            {f"{name}.{part}": value for part, value in vars(getattr(layer, name)).items()}
            if getattr(layer, name)
            else {}
        )
    return flat


class Loops:
    """The definition: one value at a time, over (spikes (t, c), ids (t,), first token's position) of each sequence."""

    def __init__(self, sequences, n_positions):
        self.tokens, self.counts, self.level_sum, self.intervals = 0, [0] * C, 0, []
        self.by_position, self.by_id = [[0, 0] for _ in range(n_positions)], [[0, 0] for _ in range(V)]
        for spikes, ids, start in sequences:
            last = {}
            for t, (row, token) in enumerate(zip(spikes.tolist(), ids.tolist(), strict=True)):
                position = min(start + t, n_positions - 1)
                self.tokens += 1
                self.by_position[position][0] += 1
                self.by_id[token][0] += 1
                for c, value in enumerate(row):
                    if value != 0:
                        self.counts[c] += 1
                        self.level_sum += abs(value)
                        self.by_position[position][1] += 1
                        self.by_id[token][1] += 1
                        if c in last:
                            self.intervals.append(t - last[c])
                        last[c] = t

    def assert_equal(self, layer):
        assert (layer.tokens, layer.spike_counts.tolist()) == (self.tokens, self.counts)
        assert layer.level_sum == self.level_sum
        assert list(zip(layer.by_position.tokens.tolist(), layer.by_position.spikes.tolist(), strict=True)) == [
            *map(tuple, self.by_position)
        ]
        assert list(zip(layer.by_id.tokens.tolist(), layer.by_id.spikes.tolist(), strict=True)) == [
            *map(tuple, self.by_id)
        ]
        expected = [self.intervals.count(n + 1) for n in range(LONGEST_INTERVAL)]
        assert layer.intervals.tolist() == [*expected, sum(n > LONGEST_INTERVAL for n in self.intervals)]
        assert layer.mean_interval == sum(self.intervals) / len(self.intervals)
