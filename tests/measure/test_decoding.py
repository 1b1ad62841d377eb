"""A text that was decoded is counted in one pass: the same counts, site by site, as around each token step."""

import dataclasses

import pytest
import torch

from neuromorphic import OpCounter
from spikegpt.config.model import ModelConfig
from spikegpt.config.neuron import NeuronConfig
from spikegpt.generate.engine import Engine
from spikegpt.measure.decoding import count_decoding
from spikegpt.model.initial import calibrate_thresholds
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import verified_spikes

INTEGERS = NeuronConfig(levels=3, signed=True, surrogate="rectangular", slope=1.0, detach_reset=True)
MODELS = {
    "twin": {"spiking": "none"},
    "published": {"spiking": "output"},
    "spike-driven": {"spiking": "input"},
    "integers": {"spiking": "input", "neuron": INTEGERS},
    "spiking head": {"spiking": "input", "spiking_head": True},
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=12, ctx_len=64, vocab_size=31, **MODELS[request.param]))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    if model.config.spiking == "input":
        calibrate_thresholds(model, 0.2)
    with verified_spikes(False):
        yield model.eval()


def by_site(tally):
    """All but how often a site was called, and what one of its calls held for a token."""
    counts = {site: vars(counts) | {"calls": 0} for site, counts in tally.sites.items()}
    return counts, tally.tokens, dataclasses.replace(tally.footprint, peak_activations=0)


@pytest.mark.parametrize("texts", [1, 3])
def test_one_pass_counts_what_token_steps_cost(model, texts):
    ids = torch.randint(0, 31, (texts, 25), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        begun = state = model(ids[:, :5]).state
        with OpCounter(model) as counter:
            for t in range(5, 25):
                state = model(ids[:, t : t + 1], state).state
    assert by_site(count_decoding(model, ids[:, 5:], begun, chunk=7)) == by_site(counter.tally())


def test_the_engine_reads_what_is_counted(model):
    """The share of the weights whose input was not 0, all products together."""
    if model.config.spiking == "output":
        pytest.skip("a sum of real numbers may be 0 in one of two orders of summation")
    # no sum of another order takes a potential over its threshold
    model.double()
    ids = torch.randint(0, 31, (1, 25), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        state = model(ids[:, :5]).state
    engine = Engine(model)
    engine.start(state)
    for t in range(5, 25):
        engine.step(ids[:, t])
    products = count_decoding(model, ids[:, 5:], state).total(kind="matmul")
    assert engine.density() == pytest.approx(products.weights_per_event / products.weights_dense, abs=1e-12)
