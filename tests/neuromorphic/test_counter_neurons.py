"""Spikes are seen however they are born; what only chooses or rounds is none."""

import pytest
import torch
from counting import Computes, count, reals
from torch import nn

V = torch.tensor([[0.2, 1.0, 2.5, -1.5], [1.75, 0.0, -0.25, 1.25]])


def emitted(function, x=V, **options):
    tally = count(Computes(function, **options), x)
    return tally.total().events_out, tally.total().neuron_updates


def written(v):
    spikes = torch.zeros_like(v)
    spikes[v >= 1] = 1
    return spikes


def soft_reset(v):
    spike = (v >= 1).to(v.dtype)
    # the rest of the potential is no spike
    return spike, v - spike


def straight_through(v):
    soft = v.sigmoid()
    return (v >= 1).float() + soft - soft.detach()


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        return (v > 0.9).float()


# 4 of 8 neurons are at their threshold of 1
BINARY = {
    "cast": lambda v: (v >= 1).to(v.dtype),
    "times one": lambda v: (v >= 1) * 1.0,
    "choice of numbers": lambda v: torch.where(v >= 1, 1.0, 0.0),
    "choice of tensors": lambda v: torch.where(v >= 1, torch.ones_like(v), torch.zeros_like(v)),
    "heaviside": lambda v: torch.heaviside(v - 1, torch.tensor(1.0)),
    "written by index": written,
    "filled": lambda v: torch.zeros_like(v).masked_fill(v >= 1, 1.0),
    "not below": lambda v: (~(v < 1)).float(),
    "both of two": lambda v: ((v >= 1) & (v < 100)).float(),
    "one less the silent": lambda v: 1.0 - (v < 1).float(),
    "half of signs": lambda v: (torch.sign(v - 0.99) + 1) / 2,
    "bounded floor": lambda v: v.floor().clamp(0, 1),
    "with a height": lambda v: (v >= 1).float() * 0.7,
    "surrogate": Surrogate.apply,
    "copied into an output": lambda v: torch.empty_like(v).copy_(v >= 1),
    "straight through": lambda v: ((v >= 1).float() - v).detach() + v,
    "straight through, the other way": straight_through,
    "with a derivative that is added": lambda v: (v >= 1).float() + 0.3 * (v - v.detach()),
    "with a derivative in a window": lambda v: (v >= 1).float() + (v - v.detach()) * ((v < 2).float() + 0 * v),
    "compared in place": lambda v: v.clone().ge_(1),
    "compared into an output": lambda v: torch.ge(v, 1, out=torch.empty_like(v)),
    "stacked": lambda v: torch.stack([(row >= 1).float() for row in v]),
}


@pytest.mark.parametrize("name", BINARY)
def test_a_spike_is_seen_however_it_is_born(name):
    assert emitted(BINARY[name]) == (4, 8)


def test_learned_heights_leave_spikes_spikes():
    model = Computes(lambda v, height: (v >= 1).float() * height, nn.Parameter(reals(4)))
    assert count(model, V).total().events_out == 4


def winners(v):
    """1 at the largest number of each row, as snnTorch's lateral inhibition makes it."""
    mask = torch.zeros_like(v)
    mask[torch.arange(len(v)), v.argmax(1)] = 1
    return mask


# name: (function, spikes that are not 0)
GRADED = {
    "floor": (torch.floor, 6),
    "round": (torch.round, 5),
    "trunc": (torch.trunc, 5),
    "integer": (lambda v: v.to(torch.int32), 5),
    "bounded levels": (lambda v: v.round().clamp(0, 4), 4),
    "quotient": (lambda v: torch.div(v, 1.0, rounding_mode="floor"), 6),
    "two thresholds": (lambda v: (v >= 1).float() + (v >= 2).float(), 4),
    "of both signs": (lambda v: (v >= 1).float() - (v <= -1).float(), 5),
    "signs": (torch.sign, 7),
    "refractory": (lambda v: (v >= 1).float() * (v < 2), 3),
    "winners": (lambda v: (v >= 1).float() * winners(v), 2),
}


@pytest.mark.parametrize("name", GRADED)
def test_integer_and_ternary_spikes_are_seen(name):
    function, spikes = GRADED[name]
    assert emitted(function) == (spikes, 8)


# a number that is drawn is compared with a probability that follows from the input
STOCHASTIC = {
    "drawn": lambda v: torch.bernoulli(v.sigmoid().round()),
    "drawn into a memory": lambda v: torch.empty_like(v).bernoulli_(v.sigmoid().round()),
    "compared by hand": lambda v: (torch.rand_like(v) < v.sigmoid().round()).float(),
    "compared with numbers of the program": lambda v: (torch.rand(2, 4) < v.sigmoid().round()).float(),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_neuron_that_fires_by_chance_is_seen(name, mode):
    # probabilities of 0 and 1, so that it is known which fire: those above 0
    with mode():
        assert emitted(STOCHASTIC[name]) == (5, 8)


NO_SPIKES = {
    "dropout": lambda v: nn.functional.dropout(v, 0.5, True),
    "stochastic depth": lambda v: v * v.new_empty(2, 1).bernoulli_(0.5),
    "mask of a constant": lambda v: v * torch.bernoulli(torch.full_like(v, 0.5)),
    "choice among data": lambda v: torch.where(v >= 1, v, 0.0),
    "rectified": lambda v: (v > 0) * v,
    "masked scores": lambda v: v.masked_fill(v < 0, float("-inf")),
    "large numbers": lambda v: (v * 1000).round(),
    "sums": lambda v: (v >= 1).float() + v,
    "differences of parts": lambda v: (v[:, :2] >= 1).float() + (v[:, :2] - v[:, 2:]),
    "differences from the first": lambda v: (v >= 1).float() + (v - v[:1]),
    "part of itself taken away": lambda v: (v >= 1).float() + torch.sub(v, v, alpha=0.5),
    "comparison of ids": lambda v: (torch.arange(4) >= 2).float() * v,
    "a comparison": lambda v: v >= 1,
    "winners": winners,
    "numbers that win": lambda v: v * winners(v),
}


@pytest.mark.parametrize("name", NO_SPIKES)
def test_what_is_no_spike_is_none(name):
    assert emitted(NO_SPIKES[name]) == (0, 0)


def test_the_rest_of_a_potential_is_no_spike():
    assert emitted(soft_reset) == (4, 8)


def test_spikes_that_feed_a_product_are_counted_once():
    model = nn.Sequential(Computes(torch.floor), Computes(torch.relu), nn.Linear(4, 3))
    total = count(model, V).total()
    # 6 leave the first module; what the second makes of them was counted
    assert (total.events_out, total.neuron_updates) == (6, 8)


def test_integer_neurons_of_spikingjelly_are_seen():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    model, x = neuron.ILIFNode(step_mode="m"), 4 * reals(6, 2, 4)
    # the surrogate adds (x - x.detach()) * window to the levels
    assert model(x).max() > 1
    model.reset()
    tally = count(nn.Sequential(model), x)
    model.reset()
    assert (tally.total().events_out, tally.total().neuron_updates) == (int(model(x).count_nonzero()), 6 * 2 * 4)


class Inline(nn.Module):
    """A neuron among the products of a module, whose spikes the next product reads at once."""

    def __init__(self, straight_through):
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 3)
        self.straight_through = straight_through

    def forward(self, x):
        potential = 0.9 * self.up(x)
        spikes = (potential >= 0).to(x.dtype)
        if self.straight_through:
            spikes = (spikes - potential) + potential
        return self.down(spikes)


@pytest.mark.parametrize("straight_through", [False, True])
def test_spikes_are_counted_where_they_are_born_not_where_they_are_read(straight_through):
    tally = count(nn.Sequential(Inline(straight_through)), V)
    assert {site.module for site in tally.select(kind="neuron")} == {"0"}
    assert tally.total().neuron_updates == 8
