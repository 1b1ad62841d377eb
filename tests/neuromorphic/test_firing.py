"""Firing statistics against loops, numpy and numbers worked by hand."""

import json

import numpy as np
import pytest
import torch
from torch import tensor

from neuromorphic.firing.layer import LONGEST_INTERVAL, RATE_BINS
from neuromorphic.firing.raster import raster, sample_neurons
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


# against independent arithmetic ---------------------------------------------------------------------------------------


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


# what must not matter -------------------------------------------------------------------------------------------------


def whole():
    return measured((random_spikes(), {"ids": random_ids()}), vocab_size=V, n_positions=20)


@pytest.mark.parametrize("size", [1, 2, 7, 36])
def test_chunks_change_nothing(size):
    pieces = zip(random_spikes().split(size, 1), random_ids().split(size, 1), strict=True)
    chunks = [(spikes, {"ids": ids, "continued": True}) for spikes, ids in pieces]
    assert everything(measured(*chunks, vocab_size=V, n_positions=20)) == everything(whole())


def test_batch_splits_change_nothing():
    pieces = zip(random_spikes().split(2), random_ids().split(2), strict=True)
    batches = [(spikes, {"ids": ids}) for spikes, ids in pieces]
    assert everything(measured(*batches, vocab_size=V, n_positions=20)) == everything(whole())


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.uint8, torch.int64], ids=str
)
def test_dtype_changes_nothing(dtype):
    layer = measured((random_spikes().to(dtype), {"ids": random_ids()}), vocab_size=V, n_positions=20)
    assert everything(layer) == everything(whole())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_dtype_of_integer_spikes_changes_nothing(dtype):
    spikes = random_spikes(levels=(-3.0, 1.0, 4.0))
    assert everything(measured((spikes.to(dtype), {}))) == everything(measured((spikes, {})))


@pytest.mark.parametrize("dims", [(0, 1), (0, 2), (1, 2)], ids=["time first", "channels first", "time last"])
def test_memory_layout_changes_nothing(dims):
    spikes = random_spikes().transpose(*dims).contiguous().transpose(*dims)
    assert everything(measured((spikes, {"ids": random_ids()}), vocab_size=V, n_positions=20)) == everything(whole())


def test_autocast_changes_nothing():
    # 601 tokens do not fit into the eight bits of bfloat16
    spikes = torch.ones(1, 601, 3)
    with torch.autocast("cpu", torch.bfloat16):
        layer = measured((spikes, {}))
    assert layer.coactivations.tolist() == [[601] * 3] * 3


def test_inference_mode_may_end_between_chunks():
    statistics = FiringStatistics()
    with torch.inference_mode():
        statistics.update({"a": train("x.")})
    statistics.update({"a": train(".x").requires_grad_()}, continued=True)
    assert statistics.layers["a"].mean_interval == 3.0


def test_spikes_stay_as_they_were():
    spikes, mask = random_spikes(), torch.arange(T) < tensor([[T], [4], [0]])
    measured((spikes, {"mask": mask}))
    assert torch.equal(spikes, random_spikes())


def test_memory_does_not_grow_with_tokens():
    statistics = FiringStatistics(vocab_size=V, n_positions=20)
    sizes = []
    for length in (3, 500, 500):
        statistics.update({"a": random_spikes(t=length)}, ids=torch.zeros(B, length, dtype=torch.int64), continued=True)
        layer = statistics.layers["a"]
        arrays = [*state(layer).values(), *vars(layer).values(), *vars(statistics).values()]
        sizes.append(sum(value.nbytes for value in arrays if isinstance(value, np.ndarray)))
    assert sizes[0] == sizes[1] == sizes[2] > 0


# padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_counts_nowhere(side):
    lengths = [T, 9, 0]
    spikes, ids = random_spikes(levels=(1.0, -2.0)), random_ids()
    column = torch.arange(T)
    mask = torch.stack([column < n if side == "right" else column >= T - n for n in lengths])
    alone = [(s[m], i[m], 0) for s, i, m in zip(spikes, ids, mask, strict=True)]
    spikes[~mask], ids[~mask] = NAN, -100
    layer = measured((spikes, {"ids": ids, "mask": mask}), vocab_size=V, n_positions=20)
    Loops(alone, 20).assert_equal(layer)
    assert layer.saturated_neurons.tolist() == [1]


def test_padding_is_left_out_of_synchrony():
    spikes, mask = random_spikes(), torch.arange(T) < tensor([[T], [9], [0]])
    alone = [(row[None, :n], {}) for row, n in zip(spikes, [T, 9], strict=False)]
    assert measured((spikes, {"mask": mask})).synchrony.mean == measured(*alone).synchrony.mean


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows_go_on_each_at_its_own_place(side):
    lengths, (spikes, ids), column = tensor([[20], [6], [1]]), (random_spikes(), random_ids()), torch.arange(20)
    mask = column < lengths if side == "right" else column >= 20 - lengths
    rest = (spikes[:, 20:], {"ids": ids[:, 20:], "continued": True})
    layer = measured((spikes[:, :20], {"ids": ids[:, :20], "mask": mask}), rest, vocab_size=V, n_positions=64)
    kept = torch.cat([mask, torch.ones(B, T - 20, dtype=torch.bool)], 1)
    Loops([(s[k], i[k], 0) for s, i, k in zip(spikes, ids, kept, strict=True)], 64).assert_equal(layer)


@pytest.mark.parametrize("marks", ["x.??", "??x.", "?x.?"])
def test_padded_chunk_goes_on_where_its_tokens_ended(marks):
    mask = tensor([[mark != "?" for mark in marks]])
    layer = measured((train(marks), {"mask": mask}), (train("..x"), {"continued": True}))
    assert layer.mean_interval == 4.0
    assert layer.by_position.tokens[:6].tolist() == [1, 1, 1, 1, 1, 0]


# raster and plain values ----------------------------------------------------------------------------------------------


def test_raster_shows_every_spike_of_its_neurons():
    spikes = random_spikes()[0]
    tokens, rows = raster(spikes, neurons=4, seed=3)
    drawn = torch.zeros(T, 4)
    drawn[tokens, rows] = 1
    assert torch.equal(drawn, spikes[:, sample_neurons(C, 4, seed=3)])


def test_sample_is_fixed_by_its_seed():
    assert (
        sample_neurons(100, 10, 0).tolist()
        == sample_neurons(100, 10, 0).tolist()
        != sample_neurons(100, 10, 1).tolist()
    )
    assert sample_neurons(3, 10).tolist() == [0, 1, 2]


@pytest.mark.parametrize("arrays", [False, True])
def test_to_dict_is_plain_json(arrays):
    statistics = FiringStatistics(vocab_size=V, n_positions=50)
    statistics.update({"a": random_spikes(), "emb": torch.zeros(B, T, 2)}, ids=random_ids())
    values = statistics.to_dict(arrays=arrays)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert ("neuron_rates" in values["layers"]["a"]) is arrays


def test_to_dict_holds_the_chosen_layers():
    statistics = FiringStatistics()
    statistics.update({"a": random_spikes(), "emb": torch.zeros(B, T, 2)})
    values = statistics.to_dict(layers=["a"])
    assert list(values["layers"]) == ["a"]
    assert values["total"]["neurons"] == values["layers"]["a"]["neurons"] == C


def test_to_dict_says_what_the_layer_says():
    layer = measured((random_spikes(), {"ids": random_ids()}), vocab_size=V, n_positions=50)
    values = layer.to_dict(arrays=True)
    assert (values["firing_rate"], values["dead"], values["saturated"]) == (layer.firing_rate, 1, 1)
    assert values["synchrony"]["mean"] == layer.synchrony.mean
    assert values["by_position"]["rates"][T - 1 : T + 1] == [layer.by_position.rates[T - 1], None]
    assert values["dead_neurons"] == [0]


# errors ---------------------------------------------------------------------------------------------------------------

GOOD = {"a": torch.ones(2, 3, 4), "b": torch.zeros(2, 3, 5)}
REFUSED = {
    "no layer": ({}, {}, "holds no layer"),
    "no tokens": ({"a": torch.ones(2, 0, 4)}, {}, r"a is \(2, 0, 4\); want \(B, T, C\)"),
    "two dimensions": ({"a": torch.ones(3, 4)}, {}, r"a is \(3, 4\); want \(B, T, C\)"),
    "other T in b": (GOOD | {"b": torch.zeros(2, 2, 5)}, {}, r"b is \(2, 2, 5\) and a is \(2, 3, 4\)"),
    "other C": (GOOD | {"b": torch.zeros(2, 3, 6)}, {}, "b has 6 neurons and had 5"),
    "layer missing": ({"a": GOOD["a"]}, {}, "got the layers a and before a, b"),
    "not a number": (GOOD | {"b": torch.full((2, 3, 5), NAN)}, {}, "b holds nan; spikes are whole numbers"),
    "infinite": (GOOD | {"b": torch.full((2, 3, 5), float("inf"))}, {}, "b holds inf"),
    "fraction": (GOOD | {"b": torch.full((2, 3, 5), 0.25)}, {}, "b holds 0.25.*divide by the height"),
    "no ids": (GOOD, {"ids": None}, r"vocab_size=5\), but ids is None"),
    "ids of other shape": (
        GOOD,
        {"ids": torch.zeros(2, 4, dtype=torch.int64)},
        r"ids are torch.int64 \(2, 4\); want whole numbers \(2, 3\)",
    ),
    "ids of other dtype": (GOOD, {"ids": torch.zeros(2, 3)}, "ids are torch.float32"),
    "id too large": (GOOD, {"ids": torch.full((2, 3), 5)}, "id 5 lies outside the vocabulary of 5"),
    "id negative": (GOOD, {"ids": torch.full((2, 3), -1)}, "id -1 lies outside"),
    "mask of other shape": (
        GOOD,
        {"mask": torch.ones(2, 4, dtype=torch.bool)},
        r"mask is torch.bool \(2, 4\); want bool \(2, 3\)",
    ),
    "mask of other dtype": (GOOD, {"mask": torch.ones(2, 3)}, "mask is torch.float32"),
    "mask with a hole": (GOOD, {"mask": tensor([[True] * 3, [True, False, True]])}, "between the tokens of row 1"),
    "negative start": (GOOD, {"start": -1}, "start is -1"),
    "start elsewhere": (GOOD, {"start": 4, "continued": True}, r"start is 4, but the rows go on at \[3\]"),
    "other batch continued": (
        {name: x[:1] for name, x in GOOD.items()},
        {"ids": torch.zeros(1, 3).long(), "continued": True},
        "1 rows cannot",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    spikes, keywords, message = REFUSED[case]
    statistics = FiringStatistics(vocab_size=5)
    statistics.update(GOOD, ids=torch.zeros(2, 3).long())
    before = statistics.to_dict(arrays=True)
    with pytest.raises(ValueError, match=message):
        statistics.update(spikes, **{"ids": torch.zeros(2, 3).long(), **keywords})
    assert statistics.to_dict(arrays=True) == before


def test_start_may_repeat_what_is_known():
    layer = measured((train("x.."), {}), (train("x"), {"start": 3, "continued": True}))
    assert layer.by_position.spikes[:4].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "ask", [lambda s: s.layers, lambda s: s.total(), lambda s: s.to_dict()], ids=["layers", "total", "to_dict"]
)
@pytest.mark.parametrize("chunks", [[], [{"mask": torch.zeros(2, 3, dtype=torch.bool)}]], ids=["nothing", "padding"])
def test_nothing_seen_has_no_rate(ask, chunks):
    statistics = FiringStatistics()
    for keywords in chunks:
        statistics.update(GOOD, **keywords)
    with pytest.raises(ValueError, match="no token has been seen"):
        ask(statistics)


@pytest.mark.parametrize(("layers", "found"), [(["a", "c"], "got c"), ([], "got none")])
def test_total_needs_known_layers(layers, found):
    statistics = FiringStatistics()
    statistics.update(GOOD)
    with pytest.raises(ValueError, match=f"want some of the layers a, b; {found}"):
        statistics.total(layers)


@pytest.mark.parametrize("options", [{"n_positions": 0}, {"sample": -1}, {"vocab_size": 0}], ids=str)
def test_sizes_must_make_sense(options):
    with pytest.raises(ValueError, match="want n_positions >= 1, sample >= 0, vocab_size >= 1"):
        FiringStatistics(**options)


@pytest.mark.parametrize(("shape", "neurons"), [((1, 3, 4), 2), ((3, 4), 0)])
def test_raster_wants_one_sequence_and_some_neurons(shape, neurons):
    with pytest.raises(ValueError, match=r"raster needs spikes \(T, C\)"):
        raster(torch.zeros(shape), neurons)
