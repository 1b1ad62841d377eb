"""A spike of n as n unit spikes: what they accumulate, fetch and emit, against loops and numbers worked by hand."""

import pytest
import torch
from counting import Computes, brute_force, count, linear, random_case
from torch import nn

from neuromorphic import OpCounter
from neuromorphic.count.spikes import emission
from spikegpt.config.neuron import NeuronConfig
from spikegpt.neuron.lif import LIF


def test_each_unit_spike_fetches_the_row_of_its_spike():
    # 2 and 1 in one row, 3 in the other: 6 units, 3 spikes; 4 weights to a row, zeros too
    x = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    weight = torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.5]])
    counts = count(linear(weight), x).total()
    assert (counts.weights_per_event, counts.repeated_weights) == (3 * 4, (6 - 3) * 4)


@pytest.mark.parametrize("seed", range(3))
def test_rows_one_by_one_and_together_repeat_the_same(seed):
    x, weight = random_case(seed, [-3.0, 0.0, 1.0, 4.0])
    layer = linear(weight)
    with torch.no_grad(), OpCounter(layer) as counter:
        for row in x:
            layer(row)
    together, alone = count(layer, x).total(), counter.tally().total()
    levels = [row.abs() for row in x if row.abs().max() > 1]
    by_hand = sum(int((row - 1).clamp(min=0).sum()) for row in levels) * 3
    assert together.repeated_weights == alone.repeated_weights == by_hand
    assert together.unit_acs == alone.unit_acs == brute_force(x, weight)[2]


@pytest.mark.parametrize("levels", [None, [0.0, 1.0], [-1.0, 0.0, 1.0]])
def test_real_and_unary_inputs_repeat_nothing(levels):
    x, weight = random_case(0, levels)
    counts = count(linear(weight), x).total()
    assert (counts.repeated_weights, counts.repeated_acs) == (0, 0)


@pytest.mark.parametrize("rows", [1, 2])
def test_units_that_meet_ternary_weights_accumulate_each(rows):
    # 3 meets two weights, -2 meets one: 2 * 2 + 1 * 1 beyond the first
    x = torch.tensor([[3.0, -2.0]]).repeat(rows, 1)
    counts = count(linear(torch.tensor([[1.0, -1.0], [-1.0, 0.0]])), x).total()
    assert (counts.effective_acs, counts.weight_side_acs, counts.unit_acs) == (3 * rows, 3 * rows, 0)
    assert counts.repeated_acs == 5 * rows


def test_a_convolution_repeats_what_each_position_meets():
    # the middle of 3 meets 3 weights of one channel, an end 2
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    layer.weight.data = torch.tensor([[[0.5, 0.5, 0.5]]])
    counts = count(layer, torch.tensor([[[2.0, 4.0, 1.0]]])).total()
    assert counts.weights_per_event == 2 + 3 + 2
    assert counts.repeated_weights == 1 * 2 + 3 * 3


# function, what it emits of [0.2, 1.0, 2.5, -3.5], and unit spikes beyond the first of each
EMITTED = {
    "binary": (lambda v: (v >= 1).float(), 2, 0),
    "levels": (lambda v: v.trunc(), 3, 1 + 2),
    "integers": (lambda v: v.to(torch.int32), 3, 1 + 2),
    "rectified": (lambda v: v.trunc().clamp(0, 4), 2, 1),
    "with a height": (lambda v: (v >= 1).float() * 0.7, 2, 0),
}


@pytest.mark.parametrize("name", EMITTED)
def test_a_spike_of_n_is_emitted_as_n_units(name):
    function, events, repeated = EMITTED[name]
    counts = count(Computes(function), torch.tensor([[0.2, 1.0, 2.5, -3.5]])).total()
    assert (counts.events_out, counts.repeated_events) == (events, repeated)


class Declared(nn.Module):
    """Returns its potential and its spikes, and says how many these are."""

    def forward(self, x):
        return x * 1.5, x.trunc()

    @staticmethod
    def op_cost(args, kwargs, output):
        return {"kind": "neuron", "neuron_updates": 4, "events_out": int(output[1].count_nonzero())}


def test_declared_spikes_are_seen_as_units_in_what_was_returned():
    counts = count(Declared(), torch.tensor([[0.2, 1.0, 2.5, -3.5]])).select(kind="neuron").values()
    declared = next(part for part in counts if part.neuron_updates)
    assert (declared.events_out, declared.repeated_events) == (3, 1 + 2)


def test_our_integer_neurons_emit_levels():
    # thresholds of 1 without memory: 2.4 is 2, -3.2 is -3, 0.4 is silent
    straight = {"surrogate": "rectangular", "slope": 1.0, "detach_reset": True}
    config = NeuronConfig(levels=4, signed=True, membrane_decay=0.0, **straight)
    counts = count(LIF(3, config), torch.tensor([[[2.4, -3.2, 0.4]]])).total()
    assert (counts.events_out, counts.repeated_events) == (2, 1 + 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_one_vector_of_spikes_and_many_repeat_the_same(dtype):
    rows = torch.tensor([[3.0, -2.0, 0.0], [1.0, 0.0, 1.0], [100.0, 0.0, 1.0]]).to(dtype)
    alone = [emission(row)["repeated_events"] for row in rows]
    assert alone == [2 + 1, 0, 99] and emission(rows)["repeated_events"] == sum(alone)
    assert emission(rows[:1] * 200)["repeated_events"] == 0


def test_spikes_without_neurons_or_dimensions_repeat_nothing():
    for shape in ((0,), (2, 0), (0, 3), ()):
        assert count(Computes(torch.floor), torch.zeros(shape)).total().repeated_events == 0
