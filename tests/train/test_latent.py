"""Latent weights: what steps, what the model holds between steps, and a run that goes on bit for bit."""

import dataclasses
import json

import pytest
import torch
from runs import MODEL, TRAIN, break_off, weights_of
from torch.nn import functional as F

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.checkpoint.weights import TensorFile, load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import TrainConfig
from spikegpt.model.network import SpikeGPT
from spikegpt.model.quantised import low_bit_matrices, near_another_code, quantise
from spikegpt.train.latent import LatentWeights
from spikegpt.train.optimizer import make_optimizer, set_learning_rate
from spikegpt.train.trainer import resume, train

LOW = dataclasses.replace(MODEL, weight_bits=3, dropout=0.0)
IDS = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(3))


def made(bits=3, confident=0.0, **changes):
    """A model of a few bits, its latent weights and its optimizer."""
    torch.manual_seed(0)
    model = SpikeGPT(dataclasses.replace(LOW, weight_bits=bits, **changes))
    for matrix, _ in low_bit_matrices(model, bits).values():
        torch.nn.init.normal_(matrix, std=0.1)
    latent = LatentWeights(model, confident)
    config = TrainConfig(lr=1e-3, weight_decay=0.1, learn_in="spikes", synop_budget=0.0)
    return model, latent, make_optimizer(model, config, latent)


def step(model, optimizer):
    set_learning_rate(optimizer, 1e-3)
    logits = model(IDS[:, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()).backward()
    optimizer.step()


@pytest.mark.parametrize("bits", [8, 2, 1.58])
def test_the_model_holds_codes_and_the_gradient_passes_straight_through(bits):
    model, latent, optimizer = made(bits)
    before = {name: tensor.clone() for name, tensor in latent.tensors.items()}
    step(model, optimizer)
    for name, (matrix, own_bits) in low_bit_matrices(model, bits).items():
        assert torch.equal(matrix, quantise(latent.tensors[name], own_bits).numbers())
        # Adam's first step is the sign of the gradient, which was that of the codes, beside the decay of the latent
        # weight; embeddings that were not read have none
        decayed = before[name] * (1 - 1e-3 * 0.1)
        moved, wanted = latent.tensors[name] - decayed, -1e-3 * matrix.grad.sign()
        assert torch.allclose(moved[matrix.grad.abs() > 1e-5], wanted[matrix.grad.abs() > 1e-5], atol=2e-5), name
    assert 0 < latent.changed < 0.3


def test_only_what_is_near_another_code_changes():
    model, latent, optimizer = made(2, confident=0.05)
    before = {name: tensor.clone() for name, tensor in latent.tensors.items()}
    for _ in range(2):
        free = {
            name: near_another_code(latent.tensors[name], bits, 0.05)
            for name, (_, bits) in low_bit_matrices(model, 2).items()
        }
        held = {name: tensor[~free[name]] for name, tensor in latent.tensors.items()}
        step(model, optimizer)
        # momentum and weight decay would move them
        assert all(torch.equal(held[name], tensor[~free[name]]) for name, tensor in latent.tensors.items())
    name = "blocks.0.ffn.key.weight"
    moved = (latent.tensors[name] != before[name]).float().mean()
    assert 0.02 < moved < 0.3


def test_units_of_current_and_latent_weights_go_together():
    """With nothing learned but thresholds, the products of the latent weights stay what they were."""
    torch.manual_seed(0)
    model = SpikeGPT(dataclasses.replace(LOW, weight_bits=4))
    latent = LatentWeights(model)
    config = TrainConfig(learn_in="currents", weight_decay=0.0, lr_scales=("*=0", "*.log_threshold=1"))
    optimizer = make_optimizer(model, config, latent)
    worth = model.blocks[0].ffn.key_neuron.spike_worth.detach().clone()
    before = latent.tensors["blocks.0.ffn.key.weight"] / worth
    step(model, optimizer)
    after = model.blocks[0].ffn.key_neuron.spike_worth.detach()
    assert not torch.equal(after, worth)
    torch.testing.assert_close(latent.tensors["blocks.0.ffn.key.weight"] / after, before)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(make_run, monkeypatch, tmp_path, cache, optimizer):
    whole = make_run("whole", model=LOW, optimizer=optimizer)
    break_off(monkeypatch, tmp_path / "broken", cache, after=7, model=LOW, optimizer=optimizer)
    resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(whole) == weights_of(tmp_path / "broken")
    latents = [TensorFile(latest_checkpoint(run) / "training.safetensors") for run in (whole, tmp_path / "broken")]
    names = [name for name in latents[0] if name.startswith("latent.")]
    assert len(names) == 16 and all(torch.equal(latents[0][name], latents[1][name]) for name in names)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    changed = [line["codes_changed"] for line in lines if line["kind"] == "train"]
    assert len(changed) >= 4 and all(0 < share < 0.5 for share in changed)


def test_a_run_begins_with_the_latent_weights_of_another(make_run, tmp_path, cache):
    first, full = make_run("first", model=LOW, steps=2), make_run("full", steps=2)
    still = {"lr": 0.0, "lr_final": 0.0, "weight_decay": 0.0, "learn_in": "spikes"}
    config = dataclasses.replace(TRAIN, steps=1, confident=0.02, **still)
    train(LOW, config, tmp_path / "next", start=first, cache=cache, quiet=True)
    assert weights_of(first) == weights_of(tmp_path / "next")
    with pytest.raises(SpikegptError, match="--confident needs a run to begin with whose weights have 3 bits too"):
        train(LOW, config, tmp_path / "none", start=full, cache=cache, quiet=True)
    # of float32 weights their codes
    config = dataclasses.replace(config, confident=0.0)
    train(LOW, config, tmp_path / "of_full", start=full, cache=cache, quiet=True)
    (fine, _), (coarse, _) = load_model(full), load_model(tmp_path / "of_full")
    name = "blocks.1.att.key.weight"
    assert torch.equal(coarse.state_dict()[name], quantise(fine.state_dict()[name], 3).numbers())
