"""The network: one answer however the text is cut, RWKV's initialisation, and the checks at its door."""

import math

import pytest
import torch

from spikegpt.config import SPIKING, ModelConfig, NeuronConfig, model_preset
from spikegpt.model import SpikeGPT, detach_state, initialise

T = 13


def make(spiking: str = "output", **changes) -> SpikeGPT:
    """A small model whose neurons fire: RWKV's zero matrices would leave them silent."""
    torch.manual_seed(1)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=20, ctx_len=16, vocab_size=31, spiking=spiking, dropout=0.0, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.8)
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
    assert all(0.02 < spike.mean() < 0.9 for name, spike in spikes.items() if name != "emb"), {n: s.mean() for n, s in spikes.items()}


def test_every_spike_is_zero_or_one(ids):
    for spike in make()(ids).spikes.values():
        assert ((spike == 0) | (spike == 1)).all()


def test_dense_twin_has_the_same_parameters_and_no_spikes(ids):
    spiking, dense = make("output"), make("none")
    assert spiking.state_dict().keys() == dense.state_dict().keys()
    assert dense(ids).spikes == {}


def test_parameter_count_is_the_formula():
    # 2VD + 13 D^2 L + D (11 L + 4)
    assert make().count_parameters() == 2 * 31 * 20 + 13 * 20 * 20 * 2 + 20 * (11 * 2 + 4)


def test_216m_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert SpikeGPT(model_preset("spikegpt-216m"), init=False).count_parameters() == 215_399_424


def test_46m_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert SpikeGPT(model_preset("spikegpt-46m"), init=False).count_parameters() == 46_553_088


def test_every_parameter_is_initialised():
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialise(model)
    assert not any(parameter.isnan().any() for parameter in model.parameters())


def test_initialisation_has_rwkvs_values():
    model = SpikeGPT(ModelConfig(n_layer=3, n_embd=5, vocab_size=7))
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
    assert not state[0].wkv.numerator.requires_grad
    same(state[1].time_mix_neuron, model(ids).state[1].time_mix_neuron.detach())


def test_last_only_is_the_last_position(ids):
    model = make()
    same(model(ids, last_only=True).logits, model(ids).logits[:, -1:])


def test_compiles_with_torch(ids):
    model = make()
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
    with pytest.raises(ValueError, match="the state has 1 layers, the model 2"):
        make()(ids, other(ids).state)
