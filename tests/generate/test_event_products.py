"""The decoder of the GPU, on the CPU by the reference of its product: the model's logits, spikes and state."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from spikegpt.config import ModelConfig
from spikegpt.generate import engine as engine_module
from spikegpt.generate.engine import Engine, why_not_by_rows
from spikegpt.generate.event_products import EventDecoder, EventProduct
from spikegpt.model import SpikeGPT

SIZES = {"n_layer": 2, "n_embd": 24, "vocab_size": 31, "dropout": 0.0}
START, T = 5, 14


def make(**changes) -> SpikeGPT:
    torch.manual_seed(0)
    return SpikeGPT(ModelConfig(**{**SIZES, "spiking": "input", **changes})).eval()


@torch.no_grad()
def decode(model: SpikeGPT, decoder: EventDecoder, ids: torch.Tensor) -> torch.Tensor:
    decoder.take(model(ids[:, :START]).state)
    return torch.stack([decoder.step(ids[:, t]) for t in range(START, T)], dim=1)


@pytest.fixture
def ids():
    return torch.randint(31, (3, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shared_neurons", [False, True])
@pytest.mark.parametrize("spiking_head", [False, True])
def test_it_gives_the_models_logits_state_and_spikes(spiking_head, shared_neurons, ids):
    model = make(spiking_head=spiking_head, shared_neurons=shared_neurons)
    decoder = EventDecoder(model, "float32")
    logits = decode(model, decoder, ids)
    with torch.no_grad():
        whole = model(ids)
    torch.testing.assert_close(logits, whole.logits[:, START:], rtol=1e-5, atol=1e-5)
    for found, wanted in zip(tree_leaves(decoder.give()), tree_leaves(whole.state), strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    synapses = model.synapses()
    fired = {name: int(whole.spikes[name][:, START:].count_nonzero()) for name in synapses}
    assert decoder.spike_counts() == fired
    # a head that reads real numbers is read whole
    dense = 0 if spiking_head else 24 * 31
    outputs = {name: synapses[name] // whole.spikes[name].shape[-1] for name in synapses}
    read = sum(fired[name] * outputs[name] for name in synapses) / (3 * (T - START))
    assert decoder.density() == pytest.approx((dense + read) / (dense + sum(synapses.values())))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_short_rows_are_the_weights_rounded(weights, ids):
    model, rounded = make(), make()
    with torch.no_grad():
        for placed in rounded.sites().values():
            for product in placed.products:
                weight = product.weight
                scale = weight.abs().amax(dim=1, keepdim=True) / 127
                short = weight.bfloat16().float() if weights == "bfloat16" else (weight / scale).round() * scale
                weight.copy_(short)
    with torch.no_grad():
        state = model(ids[:, :START]).state
    decoder = EventDecoder(model, weights)
    decoder.take(state)
    with torch.no_grad():
        wanted = rounded(ids[:, START : START + 1], state).logits[:, -1]
        torch.testing.assert_close(decoder.step(ids[:, START]), wanted, rtol=1e-4, atol=1e-4)


def test_nothing_but_the_rows_is_copied():
    model = make()
    decoder = EventDecoder(model, "float32")
    assert decoder._model.emb.weight is model.emb.weight and decoder._model.head.weight is model.head.weight
    assert isinstance(decoder._model.blocks[0].att.key, EventProduct)
    assert isinstance(model.blocks[0].att.key, torch.nn.Linear)


def test_a_model_on_a_gpu_decodes_by_it(monkeypatch, ids):
    """The device is made up: what the engine chooses, and that it then reads through `event_matvec` what fired."""
    model, dense = make(), make(spiking="none")
    monkeypatch.setattr(engine_module, "is_installed", lambda package: True)
    monkeypatch.setattr(SpikeGPT, "device", property(lambda model: torch.device("cuda")))
    assert "no product of it reads spikes" in why_not_by_rows(dense)
    engine = Engine(model, weights="int8")
    assert isinstance(engine._decoder, EventDecoder)
