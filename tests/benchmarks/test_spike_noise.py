"""What spike_noise.py says of a site, worked out by hand; and that a model without spikes has no noise of them."""

import pytest
import torch

from benchmarks.spike_noise import SKIPPED, noise_of, site_facts
from spikegpt.config import ModelConfig
from spikegpt.model.network import SpikeGPT

SIZES = {"n_layer": 2, "n_embd": 16, "vocab_size": 50, "dropout": 0.0}
IDS = torch.arange(3 * (SKIPPED + 9)).view(3, -1) * 7 % 50


def test_what_spikes_carry_of_their_currents():
    # two tokens of two channels count: 3 and 0.5, -1 and 0
    current, spikes = torch.full((2, 1, SKIPPED + 2, 2), 5.0)
    current[0, SKIPPED:] = torch.tensor([[3.0, -1.0], [0.5, 0.0]])
    spikes[0, SKIPPED:] = torch.tensor([[2.0, -1.0], [0.0, 0.0]])
    facts = {}
    site_facts(torch.nn.Identity(), (current,), (spikes,), facts, "site")
    assert facts["site"] == pytest.approx(
        {
            "firing": 2 / 4,
            "unit_spikes_per_event": 3 / 2,
            # of 9 + 1 + 0.25
            "carried": 10 / 10.25,
            # by channel (3 * 2)^2 / (9.25 * 2^2) and 1, of energy 9.25 and 1
            "fit": (9 / 9.25 * 9.25 + 1) / 10.25,
            "kurtosis": ((81 + 1 + 0.0625) / 4) / (10.25 / 4) ** 2,
        }
    )


def test_noise_is_of_spikes_alone_and_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    dense, spiking = (SpikeGPT(ModelConfig(spiking=kind, **SIZES)).eval() for kind in ("none", "input"))
    for parameter in spiking.head.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    before = {name: tensor.clone() for name, tensor in spiking.state_dict().items()}
    assert noise_of(dense, IDS)["noise"] == pytest.approx(0, abs=1e-6)
    found = noise_of(spiking, IDS)
    assert found["noise"] > 1e-4
    assert found["noise"] == pytest.approx(1 - found["bits_of_the_mean"] / found["bits"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in spiking.state_dict().items())
