"""A neuron is charged once: as its update where that has a price, as its operations where it has none."""

import pytest
import torch
from counting import Computes, SnnTorchStack, SpikingJellyStack, count
from torch import nn

from neuromorphic import estimate, load_profile

OWN = """
name = "own"
title = "A machine with neurons"
citation = "Doe 2031"
grade = "measured"
scope = "per_term"
includes = []
excludes = []
weight_bits = 8
activation_bits = 8
state_bits = 8
"""
UPDATE = "[prices.neuron_update]\npj = 100\nunit = 'pJ/update'\n"
CLASSES = "".join(
    f"[prices.{name}]\npj = 1\nunit = 'pJ/op'\n" for name in ("mac", "ac", "add", "mul", "div", "compare", "select")
)


@pytest.fixture
def machine(tmp_path):
    """A table with the prices of `tables`."""

    def load(*tables):
        path = tmp_path / "own.toml"
        path.write_text(OWN + "".join(tables))
        return load_profile(path)

    return load


class Leaky(nn.Module):
    """One step of a neuron: two multiplications, two sums, one comparison; without memory between calls."""

    def __init__(self, threshold=None):
        super().__init__()
        self.threshold = threshold or (lambda v: (v >= 1).float())

    def forward(self, current):
        potential = 0.5 * current + current
        spikes = self.threshold(potential)
        self.potential = potential - 1.0 * spikes
        return spikes


def elementwise_of(found):
    return {term.name: term.count for term in found.terms if term.name in ("add", "mul", "div", "compare", "select")}


X = torch.tensor([[0.1, 0.9, 2.0], [1.0, -1.0, 0.5]])


@pytest.mark.parametrize(
    "neuron",
    [
        Leaky(),
        nn.Sequential(Leaky()),
        Leaky(threshold=Computes(lambda v: (v >= 1).float())),
        Leaky(threshold=nn.Sequential(Computes(lambda v: (v >= 1).float()))),
    ],
    ids=["plain", "within another", "threshold apart", "threshold in a box"],
)
def test_a_foreign_neuron_is_its_update(neuron, machine):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), neuron, nn.Linear(3, 2))
    tally = count(model, X)
    found = estimate(tally, machine(UPDATE, CLASSES))
    # what is left are the sums of the last layer's bias: 2 for each of 2 texts
    assert elementwise_of(found) == {"add": 4}
    terms = {term.name: term for term in found.terms}
    assert (terms["neuron_update"].count, terms["neuron_update"].central_pj) == (6, pytest.approx(600 / 2))


def test_without_a_price_of_updates_the_same_neuron_is_its_operations(machine):
    tally = count(nn.Sequential(nn.Linear(3, 3, bias=False), Leaky()), X)
    found = estimate(tally, machine(CLASSES))
    # 6 neurons: 2 multiplications, 2 sums, 1 comparison each
    assert elementwise_of(found) == {"add": 12, "mul": 12, "compare": 6}
    assert "neurons" not in found.assumptions


def test_without_other_prices_nothing_of_the_neuron_is_missing():
    found = estimate(count(nn.Sequential(nn.Linear(3, 3, bias=False), Leaky()), X), "loihi1-presilicon")
    assert not {"add", "mul", "compare"} & set(found.unpriced)


def test_an_all_in_price_contains_foreign_neurons_too():
    found = estimate(count(nn.Sequential(nn.Linear(3, 3, bias=False), Leaky()), X), "truenorth-all-in")
    assert found.unpriced == ("mac",)


STACKS = {
    "snnTorch": (SnnTorchStack, 10 * 14 + 5),
    "SpikingJelly": (lambda: SpikingJellyStack(nn.Linear(8, 10), "LIF", nn.Linear(10, 4), "LIF"), 10 * 14),
}


@pytest.mark.parametrize("stack", STACKS)
def test_the_neurons_of_other_libraries_are_charged_once(stack, machine):
    make, summing_spikes = STACKS[stack]
    found = estimate(count(make(), torch.rand(5, 2, 8)), machine(UPDATE, CLASSES))
    # the sums of both biases, 10 and 4 for each of 5 steps of 2 texts; the stack adds up its spikes besides
    assert elementwise_of(found) == {"add": 10 * 14 + summing_spikes}
    assert next(term for term in found.terms if term.name == "neuron_update").count == 10 * 14


def test_work_beside_neurons_stays_beside_them(machine):
    model = nn.Sequential(Computes(lambda x: 2.0 * x), nn.ReLU(), Leaky(), Computes(lambda s: s + s.mean()))
    found = estimate(count(model, X), machine(UPDATE, CLASSES))
    # the scaling, the rectification, the mean and its sum
    assert elementwise_of(found) == {"mul": 6, "compare": 6, "add": 6 + 6, "div": 1}


class Among(nn.Module):
    """A neuron that is written out in a module with products, and a sum that is not the neuron's."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return x + self.down((0.5 * self.up(x) >= 1).float())


def test_among_other_work_the_interval_says_that_nobody_knows(machine):
    found = estimate(count(Among(), X), machine(UPDATE, CLASSES))
    terms = {term.name: term for term in found.terms}
    # 6 of each, for two tokens: all the neurons', or none
    for name in ("mul", "add", "compare"):
        assert (terms[name].low_pj, terms[name].central_pj, terms[name].high_pj) == (0, 0, 3.0)
        assert "do other work too" in terms[name].note
    assert "(the model)" in found.assumptions["neurons among other work"]


class Around(nn.Module):
    """The same with the threshold in a module of its own, so that its potential is charged around it."""

    def __init__(self):
        super().__init__()
        self.up, self.spike = nn.Linear(3, 3, bias=False), Computes(lambda v: (v >= 1).float())

    def forward(self, x):
        return x + self.spike(0.5 * self.up(x))


def test_what_is_around_a_threshold_may_be_its_potential_and_may_not(machine):
    found = estimate(count(Around(), X), machine(UPDATE, CLASSES))
    terms = {term.name: term for term in found.terms}
    assert "compare" not in terms
    for name in ("mul", "add"):
        assert (terms[name].low_pj, terms[name].central_pj, terms[name].high_pj) == (0, 0, 3.0)


class Declared(nn.Module):
    """Neurons that say how many they are; `work` is what they say of their operations."""

    def __init__(self, function, **work):
        super().__init__()
        self.function, self.work = function, work

    def forward(self, x):
        return self.function(x)

    def op_cost(self, args, kwargs, output):
        return {"kind": "neuron", "neuron_updates": output.numel(), **self.work}


def test_declared_updates_replace_the_operations_that_were_seen(machine):
    neuron = Declared(lambda x: (0.5 * x).sigmoid())
    found = estimate(count(nn.Sequential(nn.Linear(3, 3, bias=False), neuron), X), machine(UPDATE, CLASSES))
    assert elementwise_of(found) == {} and found.is_complete is False
    assert "sigmoid" not in found.unpriced


def test_updates_of_which_nobody_knows_the_work_are_not_free(machine):
    neuron = Declared(lambda x: x.clone())
    tally = count(nn.Sequential(nn.Linear(3, 3, bias=False), neuron), X)
    assert "neuron_update" in estimate(tally, machine(CLASSES)).unpriced
    assert "neuron_update" not in estimate(tally, machine(UPDATE, CLASSES)).unpriced


def test_the_modules_of_the_neurons_are_named_in_print(machine):
    model = nn.Sequential(*(Leaky() for _ in range(8)))
    text = str(estimate(count(model, X), machine(UPDATE, CLASSES)))
    assert "neurons: an update stands for all elementwise operations of 0, 1, 2, 3, 4, 5 and 2 more" in text
