"""Every neuron of SpikingJelly and snnTorch: an update for each number that it gives out, an event for each spike."""

import pytest
import torch
from counting import count
from torch import nn

from neuromorphic import estimate
from neuromorphic.count.counts import ELEMENTWISE

X = 2 * torch.rand(6, 4, 8, generator=torch.Generator().manual_seed(0))


class Steps(nn.Module):
    """A neuron over the steps of x (T, B, C), with its state handed over as its library does."""

    def __init__(self, neuron, is_stateful):
        super().__init__()
        self.neuron, self.is_stateful = neuron, is_stateful

    def forward(self, x):
        if self.is_stateful:
            self.neuron.reset()
            return torch.stack([self.neuron(step) for step in x])
        state, outputs = self.neuron.reset_mem(), []
        for step in x:
            spikes, *state = self.neuron(step, *(state if isinstance(state, tuple | list) else (state,)))
            outputs.append(spikes)
        return torch.stack(outputs)


SPIKINGJELLY = (
    *("ActivationAwareIFNode", "ComplementaryLIFNode", "EIFNode", "HalfThresholdIFNode", "IFNode", "ILIFNode"),
    *("IzhikevichNode", "KLIFNode", "LIFNode", "ParametricLIFNode", "QIFNode", "RAFNode", "SLTTLIFNode"),
    "SimpleIFNode",
)
SNNTORCH = {
    "Leaky": {"beta": 0.9},
    "Lapicque": {"beta": 0.9},
    "Synaptic": {"alpha": 0.8, "beta": 0.9},
    "Alpha": {"alpha": 0.95, "beta": 0.9},
    "RLeaky": {"beta": 0.9, "linear_features": 8},
    "RSynaptic": {"alpha": 0.8, "beta": 0.9, "linear_features": 8},
    "SLSTM": {"input_size": 8, "hidden_size": 8},
}


def make(name):
    if name in SNNTORCH:
        return Steps(getattr(pytest.importorskip("snntorch"), name)(threshold=0.1, **SNNTORCH[name]), False)
    return Steps(getattr(pytest.importorskip("spikingjelly.activation_based.neuron"), name)(step_mode="s"), True)


def spikes_of(model):
    with torch.no_grad():
        return int(model(X).count_nonzero())


@pytest.mark.parametrize("name", [*SPIKINGJELLY, *SNNTORCH])
def test_a_neuron_is_updated_once_for_each_number_that_it_gives_out(name):
    torch.manual_seed(0)
    model = make(name)
    total = count(model, X).total()
    assert (total.events_out, total.neuron_updates) == (spikes_of(model), X.numel())
    assert total.events_out > 0


@pytest.mark.parametrize("name", ["TernaryIFNode", "TernaryLIFNode"])
def test_a_neuron_that_calls_its_threshold_twice_is_updated_twice(name):
    # one threshold for each sign, in a module of its own: nothing tells it from two neurons whose spikes are added up
    model = make(name)
    tally = count(model, X)
    assert (tally.total().events_out, tally.total().neuron_updates) == (spikes_of(model), 2 * X.numel())
    # its operations are charged once all the same: there is no other work in it
    assert not set(estimate(tally, "loihi1-presilicon").unpriced) & set(ELEMENTWISE)
