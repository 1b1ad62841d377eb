"""The network: one answer however the text is cut, RWKV's initialisation, and the checks at its door."""

import dataclasses
import math

import pytest
import torch

from spikegpt.config import INPUT_NEURON, SPIKING, ModelConfig, NeuronConfig, model_preset
from spikegpt.model import Site
from spikegpt.model.initial import calibrate_thresholds, initialise
from spikegpt.model.network import SpikeGPT
from spikegpt.model.state import detach_state
from spikegpt.neuron.lif import LIF, check_alphabet, verified_spikes

T = 13
BINARY = NeuronConfig(threshold=1.0, learnable_threshold=True, membrane_decay=0.25)


def make(spiking: str = "output", **changes) -> SpikeGPT:
    """A small model whose neurons fire: RWKV's zero matrices would leave them silent.

    The spike-driven one in float64: in float32 another order of adding may move a potential across its threshold.
    """
    torch.manual_seed(1)
    model = SpikeGPT(
        ModelConfig(n_layer=2, n_embd=20, ctx_len=16, vocab_size=31, spiking=spiking, dropout=0.0, **changes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.8)
    if spiking == "input":
        calibrate_thresholds(model.double())
    return model.eval()


@pytest.fixture
def ids():
    return torch.randint(0, 31, (3, T), generator=torch.Generator().manual_seed(2))


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spiking", SPIKING)
@pytest.mark.parametrize("cut", range(1, T))
def test_two_chunks_give_what_the_whole_gives(spiking, cut, ids):
    model = make(spiking)
    whole, first = model(ids), model(ids[:, :cut])
    second = model(ids[:, cut:], first.state)
    same(torch.cat([first.logits, second.logits], dim=1), whole.logits)
    same(second.state, whole.state)


@pytest.mark.parametrize("spiking", SPIKING)
def test_token_by_token_gives_what_the_whole_gives(spiking, ids):
    model, state, logits = make(spiking), None, []
    for t in range(T):
        step = model(ids[:, t : t + 1], state)
        logits.append(step.logits)
        state = step.state
    whole = model(ids)
    same(torch.cat(logits, dim=1), whole.logits)
    same(state, whole.state)


def test_the_neurons_of_these_tests_fire(ids):
    spikes = make()(ids).spikes
    assert all(0.02 < spike.mean() < 0.9 for name, spike in spikes.items() if name != "emb"), {
        n: s.mean() for n, s in spikes.items()
    }


def test_every_spike_of_the_published_block_is_zero_or_one(ids):
    for spike in make()(ids).spikes.values():
        assert ((spike == 0) | (spike == 1)).all()


SITES = ("att.key", "att.value", "att.receptance", "att.wkv", "att.output", "ffn.key", "ffn.receptance", "ffn.value")


@pytest.mark.parametrize("spiking_head", [False, True])
def test_every_matrix_product_of_the_spike_driven_block_reads_spikes(spiking_head, ids):
    model = make("input", spiking_head=spiking_head)
    read = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: read.update({name: inputs[0]}))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    spikes = model(ids).spikes
    assert len(hooks) == len(read) == 7 * 2 + 1
    for name, operand in read.items():
        if name == "head" and not spiking_head:
            assert (operand != operand.round()).any()
            continue
        check_alphabet(operand, (0, 16) if name.endswith("ffn.value") else (-8, 8), name)
        assert operand.data_ptr() == spikes[f"{name}_neuron"].data_ptr()


def test_the_spikes_are_named_by_where_they_are_emitted(ids):
    names = [f"blocks.{layer}.{site}_neuron" for layer in range(2) for site in SITES]
    assert list(make("input")(ids).spikes) == names
    assert list(make("input", spiking_head=True)(ids).spikes) == [*names, "head_neuron"]


def test_synapses_are_the_weights_that_the_spikes_reach():
    C = 20
    wanted = {f"blocks.{layer}.{site}_neuron": C * C for layer in range(2) for site in SITES if site != "att.wkv"}
    wanted |= {f"blocks.{layer}.ffn.{site}_neuron": 4 * C * C for layer in range(2) for site in ("key", "value")}
    assert make("input").synapses() == wanted
    assert make("input", spiking_head=True).synapses() == {**wanted, "head_neuron": C * 31}
    assert make("output").synapses() == make("none").synapses() == {}


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("neuron", [INPUT_NEURON, BINARY], ids=["integer", "binary"])
def test_a_new_spike_driven_model_fires_on_real_text(preset, neuron):
    torch.manual_seed(0)
    model = SpikeGPT(model_preset(preset, neuron=neuron, hidden_levels=4)).eval()
    text = (
        b"It was the best of times, it was the worst of times, "
        b"it was the age of wisdom, it was the age of foolishness. " * 3
    )[:256]
    with torch.no_grad():
        spikes = model(torch.tensor([list(text)])).spikes
    rates = {name: (spike != 0).float().mean().item() for name, spike in spikes.items()}
    # inputs start at 45 % on random tokens, what a block adds to the residual stream at 5 and 10 %
    assert all(0.02 < rate < 0.50 for rate in rates.values()), rates
    synapses = model.synapses()
    assert 0.15 < sum(rates[name] * count for name, count in synapses.items()) / sum(synapses.values()) < 0.35


def test_calibration_sets_the_share_that_fires():
    model = make("input")
    for rate in (0.1, 0.25):
        torch.manual_seed(3)
        calibrate_thresholds(model, rate)
        torch.manual_seed(3)
        spikes = model(torch.randint(31, (4, 64))).spikes
        # two of the same currents may stand exactly at the threshold
        assert all(abs((spike != 0).float().mean().item() - rate) < 0.02 for spike in spikes.values())


def test_a_leaky_neuron_carries_its_potential_and_a_memoryless_one_nothing(ids):
    leaky = make("input", neuron=dataclasses.replace(INPUT_NEURON, membrane_decay=0.5, learnable_decay=True))
    state = leaky(ids).state[0]
    assert state.time_mix.neurons["key_neuron"].shape == (3, 20) and state.channel_mix.neurons[
        "value_neuron"
    ].shape == (
        3,
        80,
    )
    assert set(make("input")(ids).state[0].time_mix.neurons.values()) == {None}


@pytest.mark.parametrize("neuron", ["leaky", "binary"])
@pytest.mark.parametrize("cut", [1, 5, 12])
def test_other_neurons_of_the_spike_driven_block_carry_over_a_cut(neuron, cut, ids):
    kinds = {"leaky": dataclasses.replace(INPUT_NEURON, membrane_decay=0.5, learnable_decay=True), "binary": BINARY}
    model = make("input", neuron=kinds[neuron], hidden_levels=3)
    whole, first = model(ids), model(ids[:, :cut])
    second = model(ids[:, cut:], first.state)
    same(torch.cat([first.logits, second.logits], dim=1), whole.logits)
    same(second.state, whole.state)


def test_every_parameter_of_the_spike_driven_model_learns(ids):
    model = make("input", spiking_head=True)
    model(ids).logits.square().mean().backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert silent == []


def test_a_neuron_outside_its_alphabet_is_found_out(ids):
    class Leaking(LIF):
        def _integer(self, current, potential):
            spikes, potential = super()._integer(current, potential)
            return spikes + 0.5 * (current > 1), potential

    config = ModelConfig(n_layer=1, n_embd=20, vocab_size=31, spiking="input")
    with verified_spikes(False):
        model = SpikeGPT(config, neuron=lambda site: Leaking(site.channels, site.neuron))
        model(ids)
    with verified_spikes(), pytest.raises(ValueError, match="not whole numbers from -8 to 8"):
        model(ids)


def test_dense_twin_has_the_same_matrices_and_half_a_percent_fewer_parameters():
    spiking, dense = (
        SpikeGPT(model_preset("small"), init=False),
        SpikeGPT(model_preset("small", spiking="none"), init=False),
    )
    ours, theirs = spiking.state_dict(), dense.state_dict()
    assert {name: value.shape for name, value in ours.items() if "neuron" not in name} == {
        name: value.shape for name, value in theirs.items()
    }
    assert 1 < spiking.count_parameters() / dense.count_parameters() < 1.005


def test_dense_twin_has_the_same_parameters_and_no_spikes(ids):
    spiking, dense = make("output"), make("none")
    assert spiking.state_dict().keys() == dense.state_dict().keys()
    assert dense(ids).spikes == {}


def test_parameter_count_is_the_formula():
    # 2VD + 13 D^2 L + D (11 L + 4)
    assert make().count_parameters() == 2 * 31 * 20 + 13 * 20 * 20 * 2 + 20 * (11 * 2 + 4)


def test_216m_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert SpikeGPT(model_preset("spikegpt-216m", spiking="output"), init=False).count_parameters() == 215_399_424


def test_46m_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert SpikeGPT(model_preset("spikegpt-46m", spiking="output"), init=False).count_parameters() == 46_553_088


@pytest.mark.parametrize("spiking", SPIKING)
def test_every_parameter_is_initialised(spiking):
    model = make(spiking)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialise(model)
    assert not any(parameter.isnan().any() for parameter in model.parameters())


def test_initialisation_has_rwkvs_values():
    model = SpikeGPT(ModelConfig(n_layer=3, n_embd=5, vocab_size=7, spiking="output"))
    att = model.blocks[1].att
    # by hand for layer 1 of 3: depth 1/2, so the power is 0.7 + 1.3/2 = 1.35; the ramp is (i/5)^(2/3)
    assert att.time_decay.tolist() == pytest.approx([-5 + 8 * (i / 4) ** 1.35 for i in range(5)], rel=1e-5)
    assert att.time_first.tolist() == pytest.approx([math.log(0.3) + x for x in (0.0, 0.5, -0.5, 0.0, 0.5)], rel=1e-5)
    assert att.time_mix_v.flatten().tolist() == pytest.approx([(i / 5) ** (2 / 3) + 0.15 for i in range(5)], rel=1e-5)
    assert att.key.weight.abs().max() == 0
    torch.testing.assert_close(att.value.weight @ att.value.weight.T, torch.eye(5))
    # a matrix with more rows than columns has gain sqrt(out/in) = 2, so its columns have length 2
    torch.testing.assert_close(model.blocks[1].ffn.key.weight.T @ model.blocks[1].ffn.key.weight, 4 * torch.eye(5))
    assert model.emb.weight.abs().max() <= 1e-4


def test_one_layer_and_one_channel_work():
    logits = SpikeGPT(ModelConfig(n_layer=1, n_embd=1, vocab_size=3))(torch.tensor([[0, 1, 2]])).logits
    assert logits.isfinite().all()


def test_learnable_decay_gets_a_gradient(ids):
    model = make(neuron=NeuronConfig(learnable_decay=True))
    model(ids).logits.square().mean().backward()
    assert all(block.time_mix_neuron.decay_logit.grad.abs().sum() > 0 for block in model.blocks)


def test_detached_state_carries_no_history(ids):
    model = make()
    state = detach_state(model(ids).state)
    assert not state[0].time_mix.wkv.numerator.requires_grad
    same(state[1].time_mix_neuron, model(ids).state[1].time_mix_neuron.detach())


def test_last_only_is_the_last_position(ids):
    model = make()
    same(model(ids, last_only=True).logits, model(ids).logits[:, -1:])


@pytest.mark.slow
@pytest.mark.parametrize("spiking", SPIKING)
def test_compiles_with_torch(spiking, ids):
    model = make(spiking)
    compiled = torch.compile(model, backend="aot_eager")
    same(compiled(ids).logits, model(ids).logits)


def test_bfloat16_autocast_stays_near_float32(ids):
    model = make("none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(ids).logits
    assert (half.float() - model(ids).logits).abs().max() < 0.2 * model(ids).logits.abs().max()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.tensor([[31]]), r"token id 31 is outside the vocabulary \[0, 31\)"),
        (torch.tensor([[-1]]), "token id -1 is outside"),
        (torch.tensor([1, 2]), r"ids must be \(B, T\) whole numbers"),
        (torch.zeros(1, 0, dtype=torch.long), "no empty side"),
        (torch.zeros(1, 2), "whole numbers"),
    ],
)
def test_bad_ids_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        make()(bad)


def test_state_of_another_model_is_refused(ids):
    other = SpikeGPT(ModelConfig(n_layer=1, n_embd=20, vocab_size=31))
    with pytest.raises(ValueError, match="the state does not fit: it has 1 layers, the model 2"):
        make()(ids, other(ids).state)


def test_a_factory_makes_the_neurons_of_every_site_hidden_and_head_included():
    config = ModelConfig(n_layer=2, n_embd=8, vocab_size=31, spiking="input", spiking_head=True)
    asked = []

    def factory(site: Site) -> LIF:
        asked.append((site.name, site.product, site.channels, site.neuron))
        return LIF(site.channels, site.neuron)

    model = SpikeGPT(config, neuron=factory)
    half = [("key_neuron", "key"), ("value_neuron", "value"), ("receptance_neuron", "receptance"), ("wkv_neuron", None)]
    att = [(name, product, 8, config.neuron) for name, product in [*half, ("output_neuron", "output")]]
    ffn = [("key_neuron", "key", 8, config.neuron), ("receptance_neuron", "receptance", 8, config.neuron)]
    hidden = ("value_neuron", "value", 32, config.hidden_neuron)
    assert asked == 2 * [*att, *ffn, hidden] + [("head_neuron", "head", 8, config.head_neuron)]
    assert len(model.sites()) == len(asked)


def test_neurons_of_the_head_that_carry_a_state_are_refused():
    leaky = NeuronConfig(membrane_decay=0.5)
    config = ModelConfig(n_layer=1, n_embd=8, vocab_size=31, spiking="input", spiking_head=True)
    with pytest.raises(ValueError, match=r"neurons of the head \(LIF\) carry a state.*site.name is 'head_neuron'"):
        SpikeGPT(config, neuron=lambda site: LIF(site.channels, leaky))
