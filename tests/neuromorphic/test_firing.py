"""Firing statistics against loops, numpy and numbers worked by hand."""

import numpy as np
import pytest
import torch
from firing import NAN, C, Loops, V, measured, random_ids, random_spikes, train
from torch import tensor

from neuromorphic.firing.layer import LONGEST_INTERVAL, RATE_BINS
from neuromorphic.firing.statistics import FiringStatistics


@pytest.mark.parametrize("n_positions", [1, 20, 64])
@pytest.mark.parametrize("levels", [(1.0,), (-1.0, 1.0), (-3.0, 1.0, 4.0)], ids=["binary", "ternary", "integer"])
def test_matches_loops(levels, n_positions):
    spikes, ids = random_spikes(levels=levels), random_ids()
    layer = measured((spikes, {"ids": ids, "start": 4}), vocab_size=V, n_positions=n_positions)
    Loops([(*pair, 4) for pair in zip(spikes, ids, strict=True)], n_positions).assert_equal(layer)


def test_long_intervals_match_loops():
    spikes, ids = random_spikes(b=1, t=911, rate=0.01), torch.zeros(1, 911, dtype=torch.int64)
    layer = measured((spikes, {"ids": ids}), vocab_size=V, n_positions=8)
    assert layer.intervals[-1] > 0
    Loops([(spikes[0], ids[0], 0)], 8).assert_equal(layer)


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("sample", [5, 64])
def test_synchrony_is_numpys_corrcoef(sample, rate):
    spikes = random_spikes(rate=rate, levels=(-1.0, 2.0))
    layer = measured((spikes, {}), sample=sample)
    trains = (spikes != 0).flatten(0, 1).numpy().T[layer.sampled_neurons].astype(float)
    trains = trains[trains.std(1) > 0]
    expected = np.corrcoef(trains)[np.triu_indices(len(trains), 1)]
    np.testing.assert_allclose(layer.synchrony.correlations, expected, atol=1e-12)
    assert layer.synchrony.mean == pytest.approx(expected.mean(), abs=1e-12)
    assert layer.synchrony.histogram.sum() == len(expected)


def test_rate_histogram_counts_neurons_by_rate():
    layer = measured((random_spikes(), {}))
    assert layer.rate_histogram.tolist() == np.histogram(layer.neuron_rates, RATE_BINS, (0, 1))[0].tolist()


# by hand --------------------------------------------------------------------------------------------------------------


def test_rates_of_three_neurons_by_hand():
    layer = measured((tensor([[[1, 0, 1], [0, 0, 1]], [[1, 0, 1], [1, 0, 1]]]), {}))
    assert layer.spike_counts.tolist() == [3, 0, 4]
    assert layer.neuron_rates.tolist() == [0.75, 0.0, 1.0]
    assert layer.firing_rate == 7 / 12


def test_counts_outgrow_a_byte():
    layer = measured((torch.ones(1, 300, 301), {}))
    assert (layer.spike_counts[0], layer.by_position.spikes[0]) == (300, 301)


def test_dead_and_saturated_neurons_are_found():
    layer = measured((random_spikes(), {}))
    assert (layer.dead_neurons.tolist(), layer.saturated_neurons.tolist()) == ([0], [1])
    assert (layer.dead, layer.saturated) == (1, 1)


def test_one_spike_brings_a_dead_neuron_to_life():
    silent = torch.zeros(1, 50, 2)
    last = silent.clone()
    last[0, -1, 1] = 1
    assert measured((silent, {}), (last, {})).dead_neurons.tolist() == [0]


def test_one_silence_ends_saturation():
    nearly = torch.ones(1, 50, 2)
    nearly[0, -1, 1] = 0
    assert measured((torch.ones(1, 50, 2), {}), (nearly, {})).saturated_neurons.tolist() == [0]


def test_level_is_the_mean_height():
    # |-1| + |3| over four values
    layer = measured((tensor([[[-1.0, 0.0], [3.0, 0.0]]]), {}))
    assert (layer.firing_rate, layer.mean_level) == (0.5, 1.0)


def test_negative_spikes_do_not_cancel():
    layer = measured((tensor([[[-1.0, 1.0]]]), {}))
    assert (layer.firing_rate, layer.mean_level) == (1.0, 1.0)


def test_intervals_by_hand():
    # x at 0, 1, 4: one interval of 1, one of 3
    layer = measured((train("xx..x."), {}))
    assert (layer.intervals[:4].tolist(), layer.mean_interval) == ([1, 0, 1, 0], 2.0)


@pytest.mark.parametrize(("interval", "place"), [(LONGEST_INTERVAL, -2), (LONGEST_INTERVAL + 1, -1), (900, -1)])
def test_only_longer_intervals_overflow(interval, place):
    layer = measured((train("x" + "." * (interval - 1) + "x"), {}))
    assert (layer.intervals[place], layer.intervals.sum(), layer.mean_interval) == (1, 1, interval)


def test_interval_crosses_a_chunk_border():
    layer = measured((train("x.."), {}), (train("...."), {"continued": True}), (train(".x"), {"continued": True}))
    assert (np.flatnonzero(layer.intervals).tolist(), layer.mean_interval) == ([7], 8.0)


def test_no_interval_joins_unrelated_sequences():
    assert measured((train("x.."), {}), (train("..x"), {})).mean_interval is None


def test_a_train_forgets_the_sequence_before_the_last():
    layer = measured((train("x"), {}), (train("."), {}), (train("x"), {"continued": True}))
    assert layer.mean_interval is None


def test_rows_and_neurons_have_trains_of_their_own():
    spikes = torch.zeros(2, 3, 2)
    spikes[0, 0, 0] = spikes[0, 1, 1] = spikes[1, 2, 0] = 1
    assert measured((spikes, {}), (spikes, {})).intervals.sum() == 0
    # each of the three trains fires again three tokens later
    assert measured((spikes, {}), (spikes, {"continued": True})).intervals[:4].tolist() == [0, 0, 3, 0]


def test_positions_past_the_end_share_the_last_bin():
    layer = measured((train(".x.xx"), {}), n_positions=3)
    assert layer.by_position.tokens.tolist() == [1, 1, 3]
    assert layer.by_position.rates.tolist() == [0.0, 1.0, 2 / 3]


def test_rate_by_id_by_hand():
    layer = measured((tensor([[[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]]), {"ids": tensor([[2, 2, 0]])}), vocab_size=3)
    np.testing.assert_array_equal(layer.by_id.rates, [0.0, NAN, 3 / 8])
    assert layer.by_id.tokens.tolist() == [1, 0, 2]


def test_without_vocabulary_there_is_no_rate_by_id():
    assert measured((train("x"), {"ids": tensor([[99]])})).by_id is None


def test_twins_correlate_and_opposites_do_not():
    first = random_spikes(c=3)[..., 2:]
    assert measured((torch.cat([first, first], -1), {})).synchrony.mean == pytest.approx(1.0)
    assert measured((torch.cat([first, 1 - first], -1), {})).synchrony.mean == pytest.approx(-1.0)


def test_correlation_rounded_past_one_is_counted():
    # one spike in four tokens: (4 - 1) / sqrt(3)^2 is one bit above 1
    assert measured((train("x...").expand(1, 4, 2), {})).synchrony.histogram[-1] == 1


def test_constant_neurons_have_no_synchrony():
    synchrony = measured((random_spikes(), {})).synchrony
    assert (synchrony.neurons, synchrony.constant) == (C - 2, 2)
    assert measured((torch.ones(1, 4, 3), {})).synchrony.mean is None


def test_total_counts_each_neuron_once():
    statistics = FiringStatistics()
    statistics.update({"emb": torch.zeros(1, 2, 7), "narrow": torch.ones(1, 2, 1), "wide": torch.zeros(1, 2, 3)})
    total = statistics.total(["narrow", "wide"])
    assert (total.tokens, total.neurons, total.firing_rate, total.dead, total.saturated) == (2, 4, 0.25, 3, 1)
    assert statistics.total().neurons == 11
