"""Firing statistics as rasters and plain values, and what they refuse."""

import json

import pytest
import torch
from firing import NAN, B, C, T, V, measured, random_ids, random_spikes, train
from torch import tensor

from neuromorphic.firing.raster import raster, sample_neurons
from neuromorphic.firing.statistics import FiringStatistics


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


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_what_is_not_finite_is_no_spike_of_a_raster(value):
    with pytest.raises(ValueError, match="the spikes hold NaN or infinity"):
        raster(tensor([[0.0, value]]), 2)
