"""Ours against the authors' code: logits, spikes, loss and gradients on stored random weights (tests/golden)."""

import numpy as np
import pytest
import torch
from golden import load, relative_error, slopes
from torch.nn import functional as F

from spikegpt.train.losses import l2wrap

CASES = "spikegpt_train_a", "rwkv4_a", "perspectives_a"
LOGITS = {torch.float32: 1e-4, torch.float64: 1e-9}
GRADIENTS = {torch.float32: 1e-4, torch.float64: 1e-8}


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
    stored = {key: parameter.grad for key, parameter in model.named_parameters() if f"grad.{key}" in arrays.files}
    worst = max(relative_error(grad, arrays[f"grad.{key}"]) for key, grad in stored.items())
    # the stored gradients are float32: in float64 they can agree only as far as float32 goes
    assert worst < max(GRADIENTS[dtype], 2e-5)


@pytest.mark.parametrize("name", CASES)
def test_loss_is_the_authors_in_float64(name):
    model, arrays, ids, targets = load(name, torch.float64)
    loss = F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten()).item()
    theirs = 4.991900343363681 if name == "spikegpt_train_a" else arrays["loss64"].item()
    assert loss == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_numba_gradients_follow_the_float64_model(name):
    # the float64 reference is autograd through plain torch; nothing is shared with the hand-written backward passes
    exact, fast = load(name, torch.float64), load(name, torch.float32)
    for model, _, ids, targets in (exact, fast):
        F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten()).backward()
    wanted = dict(exact[0].named_parameters())
    assert (
        max(relative_error(p.grad, wanted[key].grad.numpy()) for key, p in fast[0].named_parameters())
        < GRADIENTS[torch.float32]
    )


@pytest.mark.parametrize("key", ["head.weight", "emb.weight", "ln_out.weight"])
def test_l2wrap_gradient_is_the_authors(key):
    model, arrays, ids, targets = load("spikegpt_train_a", torch.float64)
    logits = model(ids).logits
    (F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + l2wrap(logits, 1e-4)).backward()
    assert relative_error(model.get_parameter(key).grad, arrays[f"grad_with_l2wrap.{key}"]) < 2e-5


# below the last neuron nothing is a step: there finite differences hold for the spiking model too
SMOOTH = {"rwkv4_a": None, "perspectives_a": None, "spikegpt_train_a": {"head.weight", "ln_out.weight", "ln_out.bias"}}


@pytest.mark.parametrize("name", CASES)
def test_float64_gradient_is_that_of_finite_differences(name):
    # the stored gradients end at float32; this reaches the 1e-8 that they cannot
    model, _, ids, targets = load(name, torch.float64)
    chosen = [parameter for key, parameter in model.named_parameters() if SMOOTH[name] is None or key in SMOOTH[name]]
    directions = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype) for i, p in enumerate(chosen)
    ]

    # relu squared has a kink in its slope, which only small steps pass unharmed
    step = 3e-7 if name == "rwkv4_a" else 1e-5
    slope, difference = slopes(model, ids, targets, chosen, directions, step)
    assert difference == pytest.approx(slope, rel=1e-8)
