"""Neurons silenced, stimulated and replaced, by site and channel, and only within the block."""

import pytest
import torch

from spikegpt import replaced, silenced, stimulated
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig, SamplingConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.generate import generate
from spikegpt.generate.engine import why_not_by_rows
from spikegpt.model import SpikeGPT

KEY, IDS = "blocks.0.att.key_neuron", torch.arange(40).view(2, 20)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SpikeGPT(ModelConfig(n_layer=2, n_embd=16, vocab_size=256)).eval()


def test_silent_channels_emit_nothing_and_others_as_before(model):
    before = model(IDS).spikes[KEY]
    with silenced(model, KEY, channels=[3, 5]):
        after = model(IDS).spikes[KEY]
    others = [channel for channel in range(16) if channel not in (3, 5)]
    assert before[..., [3, 5]].any() and not after[..., [3, 5]].any()
    assert torch.equal(after[..., others], before[..., others])


def test_to_silence_neurons_is_to_take_away_the_weights_that_read_them(model):
    with silenced(model, KEY, channels=[3]):
        silent = model(IDS).logits
    with torch.no_grad():
        model.blocks[0].att.key.weight[:, 3] = 0
    torch.testing.assert_close(model(IDS).logits, silent)


def test_a_current_that_is_large_enough_makes_neurons_fire_always(model):
    with stimulated(model, "blocks.*.att.key_neuron", 100.0, channels=torch.tensor([0])):
        spikes = model(IDS).spikes
    assert (spikes[KEY][..., 0] != 0).all() and (spikes["blocks.1.att.key_neuron"][..., 0] != 0).all()


def test_spikes_are_replaced_by_what_is_made_of_them(model):
    seen = []

    def shuffled(spikes):
        seen.append(spikes)
        return spikes.flip(1)

    before = model(IDS).spikes[KEY]
    with replaced(model, KEY, shuffled):
        after = model(IDS).spikes[KEY]
    assert torch.equal(seen[0], before) and torch.equal(after, before.flip(1))


def test_after_the_block_and_after_an_error_in_it_the_model_is_as_before(model):
    before = model(IDS).logits
    with (
        pytest.raises(ValueError, match=r"made \(2, 20, 8\) of \(2, 20, 16\)"),
        replaced(model, KEY, lambda x: x[..., :8]),
    ):
        model(IDS)
    assert torch.equal(model(IDS).logits, before)


def test_interventions_nest_and_the_gradient_goes_through_them(model):
    with silenced(model, KEY), stimulated(model, "blocks.0.ffn.*", 0.1):
        model.train()(IDS).logits.sum().backward()
    assert not model.blocks[0].att.key.weight.grad.any() and model.blocks[0].ffn.key.weight.grad.any()


def test_generation_within_the_block_is_of_the_changed_model(model):
    options = SamplingConfig(max_tokens=8, temperature=0.0)
    plain = generate(model, ByteTokenizer(), ["a"], options)
    with torch.no_grad(), silenced(model, "*"):
        assert "silenced" in why_not_by_rows(model)
        silent = generate(model, ByteTokenizer(), ["a"], options)
        state, token, expected = None, ord("a"), b""
        for _ in range(8):
            logits, state, _ = model(torch.tensor([[token]]), state)
            token = int(logits[0, -1].argmax())
            expected += bytes([token])
    assert silent == [expected.decode("utf-8", "replace")] and silent != plain
    assert why_not_by_rows(model) == ""


@pytest.mark.parametrize(
    ("sites", "channels", "said"),
    [
        ("blocks.9.*", None, "no site of neurons is called 'blocks.9"),
        (KEY, [16], "has no channel 16; its channels are 0 to 15"),
        (KEY, [-1], "has no channel -1"),
        (KEY, [1, 1], "must be distinct whole numbers"),
        (KEY, [0.5], "must be distinct whole numbers"),
        (KEY, [], "must be distinct whole numbers, at least one"),
    ],
)
def test_neurons_that_are_not_there_are_named(sites, channels, said, model):
    with pytest.raises(SpikegptError, match=said), silenced(model, sites, channels):
        pass
