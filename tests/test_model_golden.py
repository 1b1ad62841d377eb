"""Ours against the authors' code: logits, spikes, loss and gradients on stored random weights (tests/golden)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spikegpt.config import ModelConfig
from spikegpt.model import SpikeGPT, l2wrap

GOLDEN = Path(__file__).parent / "golden"
LOGITS = {torch.float32: 1e-4, torch.float64: 1e-9}
GRADIENTS = {torch.float32: 1e-4, torch.float64: 1e-8}
CASES = {"spikegpt_train_a": "output", "rwkv4_a": "none"}


def load(name: str, dtype: torch.dtype):
    arrays = np.load(GOLDEN / f"{name}.npz")
    weights = {key.removeprefix("param."): torch.from_numpy(arrays[key]).to(dtype) for key in arrays.files if key.startswith("param.")}
    vocab_size, n_embd = weights["emb.weight"].shape
    config = ModelConfig(n_layer=2, n_embd=n_embd, ctx_len=64, vocab_size=vocab_size, spiking=CASES[name], dropout=0.0)
    model = SpikeGPT(config, init=False).to(dtype)
    model.load_state_dict(weights)
    return model, arrays, torch.from_numpy(arrays["idx"]).long(), torch.from_numpy(arrays["targets"]).long()


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    theirs = torch.from_numpy(theirs).double()
    return ((ours.detach().double() - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_authors(name, dtype):
    model, arrays, ids, _ = load(name, dtype)
    assert relative_error(model(ids).logits, arrays["logits64"]) < LOGITS[dtype]


def test_dense_logits_are_those_of_the_rwkv_package():
    model, arrays, ids, _ = load("rwkv4_a", torch.float32)
    assert relative_error(model(ids).logits, arrays["logits_pip"]) < LOGITS[torch.float32]


@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("half", ["time_mix_neuron", "channel_mix_neuron"])
def test_every_spike_is_the_authors(dtype, layer, half):
    model, arrays, ids, _ = load("spikegpt_train_a", dtype)
    theirs = arrays[f"spk.{layer}.lif{1 if half == 'time_mix_neuron' else 2}"]
    assert np.array_equal(model(ids).spikes[f"blocks.{layer}.{half}"].detach().numpy(), theirs)


@pytest.mark.parametrize("dtype", LOGITS)
def test_membrane_potential_is_the_authors(dtype):
    model, arrays, ids, _ = load("spikegpt_train_a", dtype)
    assert relative_error(model(ids).state[0].time_mix_neuron, arrays["v.0.lif1"][:, -1]) < 1e-5


@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_authors(name, dtype):
    model, arrays, ids, targets = load(name, dtype)
    F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten()).backward()
    worst = max(
        relative_error(parameter.grad, arrays[f"grad.{key}"]) for key, parameter in model.named_parameters() if f"grad.{key}" in arrays.files
    )
    # the stored gradients are float32: in float64 they can agree only as far as float32 goes
    assert worst < max(GRADIENTS[dtype], 2e-5)
