"""What a trace keeps: what neurons were given, the membranes that decide, and the spikes that follow from them."""

import pytest
import torch
from torch import nn

from spikegpt import silenced, stimulated, trace
from spikegpt.config import ModelConfig, NeuronConfig
from spikegpt.model import SpikeGPT
from spikegpt.neuron import heaviside

NEURONS = {
    "binary": {"membrane_decay": 0.5},
    "learned threshold": {"membrane_decay": 0.5, "learnable_threshold": True},
    "towards rest": {"membrane_decay": 0.7, "reset": "zero", "reset_potential": -0.02, "decay_input": True},
    "integer": {"membrane_decay": 0.6, "levels": 3, "signed": True, "reset": "subtract"},
}
STRAIGHT_THROUGH = {"surrogate": "rectangular", "slope": 1.0, "detach_reset": True}


def neuron_of(kind: str) -> NeuronConfig:
    return NeuronConfig(threshold=0.2, **NEURONS[kind], **(STRAIGHT_THROUGH if kind == "integer" else {}))


def model_of(spiking="output", **changes) -> SpikeGPT:
    """A model whose neurons are driven: what a new one adds to the stream is 0."""
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, vocab_size=32, spiking=spiking, **changes)).eval()
    with torch.no_grad():
        for block in model.blocks:
            for projection in (block.att.output, block.ffn.value, block.ffn.receptance):
                projection.weight.normal_(std=0.5)
    return model


IDS = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", NEURONS)
def test_a_neuron_fires_where_its_membrane_is_not_below_its_threshold(kind):
    neuron = neuron_of(kind)
    found = trace(model_of(neuron=neuron), IDS)
    for site, spikes in found.spikes.items():
        whole = (found.membranes[site] / found.thresholds[site]).abs().floor() * found.membranes[site].sign()
        low, high = neuron.alphabet
        assert torch.equal(spikes, whole.clamp(low, high)), site
    assert any(spikes.any() for spikes in found.spikes.values())


def test_a_trace_has_every_site_of_the_spike_driven_block_and_reads_on():
    model = model_of("input", spiking_head=True)
    whole, first = trace(model, IDS), trace(model, IDS[:, :4])
    rest = trace(model, IDS[:, 4:], first.state)
    assert list(whole.spikes) == list(whole.currents) == list(whole.membranes) == list(model.sites())
    for kept in ("spikes", "currents", "membranes"):
        for site, values in getattr(whole, kept).items():
            torch.testing.assert_close(getattr(rest, kept)[site], values[:, 4:], rtol=1e-4, atol=1e-5)


def test_a_trace_reads_on_with_membranes_that_remember():
    model = model_of(neuron=neuron_of("integer"))
    whole, first = trace(model, IDS), trace(model, IDS[:, :4])
    for site, values in trace(model, IDS[:, 4:], first.state).membranes.items():
        torch.testing.assert_close(values, whole.membranes[site][:, 4:], rtol=1e-4, atol=1e-5)


def test_a_trace_changes_nothing():
    model = model_of("input").train()
    with torch.no_grad():
        before = model.eval()(IDS).logits
    model.train()
    assert torch.equal(trace(model, IDS).logits, before)
    assert model.training and not any(placed.neuron._forward_pre_hooks for placed in model.sites().values())


class _Step(nn.Module):
    """A neuron of one's own."""

    def forward(self, current, state=None):
        return heaviside(current, "atan", 2.0), None


def test_neurons_of_ones_own_have_currents_and_spikes_and_no_membrane():
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=16, vocab_size=32, spiking="output"), neuron=lambda site: _Step())
    found = trace(model, IDS)
    assert found.membranes == {} and found.currents.keys() == found.spikes.keys() == model.sites().keys()


def test_a_dense_model_has_an_empty_trace():
    assert trace(model_of("none"), IDS).spikes == {}


def test_a_trace_sees_what_an_intervention_makes():
    model, site = model_of("input"), "blocks.1.ffn.key_neuron"
    plain = trace(model, IDS)
    with stimulated(model, site, 0.5, channels=[2]):
        more = trace(model, IDS)
    assert torch.equal(more.currents[site][..., 2], plain.currents[site][..., 2] + 0.5)
    with silenced(model, site):
        assert not trace(model, IDS).spikes[site].any()
