"""LIF worked by hand, and other libraries' neurons in the place of ours."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from spikegpt.config import ModelConfig, NeuronConfig
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import LIF, SnnTorchNeuron, SpikingJellyNeuron


def test_potential_charges_fires_and_resets_by_hand():
    # decay 1/2, input halved: 1.5 -> 0.75; (0.75 + 1.5)/2 = 1.125 fires, back to 0; 1.5 -> 0.75
    spikes, potential = LIF(1)(torch.full((1, 3, 1), 1.5))
    assert spikes.flatten().tolist() == [0, 1, 0]
    assert potential.item() == 0.75


def test_soft_reset_keeps_what_is_above_the_threshold():
    # input not halved: 1.5 fires, 0.5 left; 0.25 + 1.5 = 1.75 fires, 0.75 left
    neuron = LIF(1, NeuronConfig(reset="subtract", decay_input=False))
    spikes, potential = neuron(torch.full((1, 2, 1), 1.5))
    assert spikes.flatten().tolist() == [1, 1]
    assert potential.item() == 0.75


def test_fires_at_the_threshold_exactly():
    assert LIF(1)(torch.full((1, 1, 1), 2.0))[0].item() == 1


def test_steps_are_the_scan():
    neuron, current = LIF(5), 3 * torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    potential, spikes = None, []
    for drive in current.unbind(1):
        spike, potential = neuron.step(drive, potential)
        spikes.append(spike)
    whole, last = neuron(current)
    assert torch.equal(torch.stack(spikes, 1), whole)
    assert torch.equal(potential, last)


def spikingjelly_neuron(kind: str):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="spikingjelly is not installed")
    make = {
        "LIF": lambda: neuron.LIFNode(step_mode="m"),
        "PLIF": lambda: neuron.ParametricLIFNode(step_mode="m"),
        "PSN": lambda: neuron.PSN(T=12),
        "MaskedPSN": lambda: neuron.MaskedPSN(k=4, T=12, lambda_init=1.0, step_mode="m"),
        "SlidingPSN": lambda: neuron.SlidingPSN(k=3, step_mode="m"),
    }
    return SpikingJellyNeuron(make[kind]())


def snntorch_neuron(kind: str):
    snn = pytest.importorskip("snntorch", reason="snntorch is not installed")
    return SnnTorchNeuron(
        {"Leaky": lambda: snn.Leaky(beta=0.5), "Synaptic": lambda: snn.Synaptic(alpha=0.8, beta=0.5)}[kind]()
    )


FOREIGN = [(spikingjelly_neuron, kind) for kind in ("LIF", "PLIF", "PSN", "MaskedPSN", "SlidingPSN")]
FOREIGN += [(snntorch_neuron, kind) for kind in ("Leaky", "Synaptic")]


@pytest.mark.parametrize(("make", "kind"), FOREIGN, ids=lambda value: value if isinstance(value, str) else "")
def test_foreign_neuron_is_causal_and_works_in_chunks(make, kind):
    torch.manual_seed(3)
    neuron = make(kind)
    neuron.check_causal(channels=4)
    current = 3 * torch.randn(2, 9, 4)
    whole, _ = neuron(current)
    first, state = neuron(current[:, :4])
    second, _ = neuron(current[:, 4:], state)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert 0 < whole.mean() < 1


@pytest.mark.parametrize(("make", "kind"), FOREIGN, ids=lambda value: value if isinstance(value, str) else "")
def test_foreign_neuron_takes_the_place_of_ours_in_the_model(make, kind):
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=8, vocab_size=11, spiking="output"), neuron=lambda site: make(kind))
    ids = torch.randint(0, 11, (2, 9))
    model(ids).logits.square().mean().backward()
    assert model.blocks[0].att.output.weight.grad.abs().sum() > 0
    assert [spikes.shape for spikes in model(ids).spikes.values()] == [(2, 9, 8)] * 5


@pytest.mark.parametrize(("make", "kind"), FOREIGN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_foreign_neuron_computes_in_float32_where_products_are_autocast(make, kind):
    torch.manual_seed(3)
    neuron, current = make(kind), 3 * torch.randn(2, 9, 4).bfloat16()
    whole, state = neuron(current.float())
    with torch.autocast("cpu", torch.bfloat16):
        half, after = neuron(current)
    assert half.dtype == torch.bfloat16 and torch.equal(half.float(), whole)
    for found, wanted in zip(tree_leaves(after), tree_leaves(state), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("make", [lambda: snntorch_neuron("Leaky"), lambda: Threshold()], ids=["Leaky", "own"])
def test_spikes_in_float32_meet_keys_in_half_precision(make):
    config = ModelConfig(n_layer=1, n_embd=8, vocab_size=11, spiking="input")
    model = SpikeGPT(config, neuron=lambda site: make())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randint(0, 11, (2, 9))).logits.isfinite().all()


class Threshold(torch.nn.Module):
    """A neuron of somebody's own, which spikes in float32 whatever it reads."""

    def forward(self, current, state=None):
        return (current > 1).float(), None


def test_foreign_neuron_in_the_spike_driven_block_leaves_the_hidden_layer_to_our_own():
    config = ModelConfig(n_layer=2, n_embd=8, vocab_size=11, spiking="input")
    model = SpikeGPT(config, neuron=lambda site: spikingjelly_neuron("LIF"))
    spikes = model(torch.randint(0, 11, (2, 9))).spikes
    assert [spike.shape for spike in spikes.values()] == [*[(2, 9, 8)] * 7, (2, 9, 32)] * 2


def test_spikingjellys_lif_spikes_as_ours_does():
    current = 3 * torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spikingjelly_neuron("LIF")(current)[0], LIF(6)(current)[0])


def test_neuron_that_looks_ahead_is_found():
    class Average(torch.nn.Module):
        def forward(self, current):
            return (current.mean(0, keepdim=True) > 0).expand_as(current).float()

    with pytest.raises(ValueError, match="lets a token see later tokens"):
        SpikingJellyNeuron(Average()).check_causal(channels=8)


def test_text_longer_than_a_psn_is_refused():
    with pytest.raises(ValueError, match="made for T=12 tokens, the text has 13"):
        spikingjelly_neuron("PSN")(torch.zeros(1, 13, 4))


def test_single_step_spikingjelly_neuron_is_refused():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="spikingjelly is not installed")
    with pytest.raises(ValueError, match="step_mode='s'"):
        SpikingJellyNeuron(neuron.LIFNode())


def test_snntorch_neuron_with_its_own_state_is_refused():
    snn = pytest.importorskip("snntorch", reason="snntorch is not installed")
    with pytest.raises(ValueError, match="init_hidden=True"):
        SnnTorchNeuron(snn.Leaky(beta=0.5, init_hidden=True))


def test_thresholds_are_computed_by_one_thread_and_the_others_come_back(monkeypatch):
    neuron, seen, exp = LIF(256, NeuronConfig(learnable_threshold=True)), [], torch.exp
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "exp", lambda numbers: [seen.append(torch.get_num_threads()), exp(numbers)][1])
    try:
        torch.set_num_threads(3)
        assert torch.equal(neuron.threshold, exp(neuron.log_threshold))
        assert (seen, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)
