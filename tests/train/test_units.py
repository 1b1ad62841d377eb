"""Weights behind neurons, learned per unit of current: against autograd of that parametrisation."""

import dataclasses

import pytest
import torch
from runs import MODEL, TRAIN, weights_of
from torch.func import functional_call

from spikegpt.model.network import SpikeGPT
from spikegpt.train.optimizer import make_optimizer
from spikegpt.train.trainer import resume
from spikegpt.train.units import CurrentUnits

# whose neurons the products of a half read
OWN = {
    "att": {name: f"{name}_neuron" for name in ("key", "value", "receptance", "output")},
    "ffn": {name: f"{name}_neuron" for name in ("key", "value", "receptance")},
}
SHARED = {
    "att": OWN["att"] | dict.fromkeys(("key", "value", "receptance"), "input_neuron"),
    "ffn": OWN["ffn"] | dict.fromkeys(("key", "receptance"), "input_neuron"),
}


def read_by(model: SpikeGPT) -> list[tuple[str, str, str]]:
    """(half, product, site) of the products of a block."""
    halves = SHARED if model.config.shared_neurons else OWN
    return [(half, name, site) for half, sites in halves.items() for name, site in sites.items()]


def made(**changes) -> SpikeGPT:
    torch.manual_seed(0)
    model = SpikeGPT(dataclasses.replace(MODEL, dropout=0.0, **changes)).double()
    for name, parameter in model.named_parameters():
        # as after a training: no zeros, and no thresholds alike
        if parameter.dim() == 2 or "threshold" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def real_of(model: SpikeGPT) -> dict[str, torch.Tensor]:
    """The parameters of a spike-driven model in units of current, worked out site by site."""
    found = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for layer, block in enumerate(model.blocks):
        path = f"blocks.{layer}"
        wkv = block.att.wkv_neuron.spike_worth
        for half, name, site in read_by(model):
            worth = getattr(getattr(block, half), site).spike_worth
            if (half, name) == ("att", "output"):
                worth = worth * wkv
                found[f"{path}.att.output_neuron.log_threshold"] += torch.log(wkv).detach()
            found[f"{path}.{half}.{name}.weight"] /= worth.detach()
    return found


def stored_of(real: dict[str, torch.Tensor], model: SpikeGPT) -> dict[str, torch.Tensor]:
    """What is stored for parameters in units of current; differentiable."""
    found = dict(real)
    for layer, block in enumerate(model.blocks):
        path = f"blocks.{layer}"

        def worth(site: str, path: str = path, block=block) -> torch.Tensor:
            levels = block.get_submodule(site).config.levels
            return torch.exp(found[f"{path}.{site}.log_threshold"]) * (1 + 1 / levels)

        wkv = worth("att.wkv_neuron")
        found[f"{path}.att.output_neuron.log_threshold"] = real[f"{path}.att.output_neuron.log_threshold"] - wkv.log()
        for half, name, site in read_by(model):
            scale = worth(f"{half}.{site}") * (wkv if (half, name) == ("att", "output") else 1)
            found[f"{path}.{half}.{name}.weight"] = real[f"{path}.{half}.{name}.weight"] * scale
    return found


@pytest.mark.parametrize("shared_neurons", [False, True])
def test_a_step_is_the_one_of_weights_that_are_learned_per_unit_of_current(shared_neurons):
    model, rate = made(shared_neurons=shared_neurons), 1e-2
    ids = torch.randint(256, (2, 9))
    real = {name: value.requires_grad_() for name, value in real_of(model).items()}
    loss = functional_call(model, stored_of(real, model), ids).logits.square().mean()
    gradients = torch.autograd.grad(loss, list(real.values()))
    stepped = {
        name: (value - rate * grad).detach() for (name, value), grad in zip(real.items(), gradients, strict=True)
    }
    wanted = stored_of(stepped, model)

    model(ids).logits.square().mean().backward()
    optimizer, units = torch.optim.SGD(model.parameters(), lr=rate), CurrentUnits(model)
    units.enter()
    optimizer.step()
    units.leave()
    found = dict(model.named_parameters())
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-9, atol=1e-12, msg=name)


def test_without_a_step_nothing_changes_but_the_last_bits():
    model = made()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    units = CurrentUnits(model)
    units.enter()
    assert not torch.equal(before["blocks.0.att.key.weight"], model.blocks[0].att.key.weight)
    units.leave()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{"spiking": "none"}, {"spiking": "output", "neuron": None}])
def test_where_no_weights_read_spikes_there_is_nothing_to_convert(changes):
    assert CurrentUnits(SpikeGPT(dataclasses.replace(MODEL, **changes))).readers == []


def test_what_is_frozen_keeps_its_last_bit():
    model = SpikeGPT(MODEL)
    frozen = model.blocks[0].att.key.weight
    threshold = model.blocks[0].att.key_neuron.log_threshold
    before = frozen.detach().clone(), threshold.detach().clone()
    optimizer = make_optimizer(model, dataclasses.replace(TRAIN, freeze=("blocks.0.att.key.weight",)))
    model(torch.zeros(1, 4, dtype=torch.long)).logits.square().mean().backward()
    optimizer.step()
    assert torch.equal(frozen, before[0]) and not torch.equal(threshold, before[1])


@pytest.mark.parametrize("pattern", ["blocks.*.att.output_neuron.*", "*.log_threshold", "blocks.*.att.wkv_neuron.*"])
def test_frozen_thresholds_keep_their_last_bit_whatever_others_learn(pattern):
    model = SpikeGPT(MODEL)
    optimizer = make_optimizer(model, dataclasses.replace(TRAIN, freeze=(pattern,)))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    wkv = model.blocks[0].att.wkv_neuron.log_threshold.detach().clone()
    for _ in range(3):
        model(torch.randint(256, (2, 9))).logits.square().mean().backward()
        optimizer.step()
    named = dict(model.named_parameters())
    assert frozen and all(torch.equal(named[name], value) for name, value in frozen.items())
    assert torch.equal(model.blocks[0].att.wkv_neuron.log_threshold, wkv) == ("output" not in pattern)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_resumes_byte_for_byte(make_run, cache, optimizer):
    whole, broken = (make_run(name, optimizer=optimizer, learn_in="currents") for name in ("whole", "broken"))
    for file in (broken / "checkpoints" / "step-00000012").iterdir():
        file.unlink()
    resume(broken, cache=cache, quiet=True)
    assert weights_of(broken) == weights_of(whole)
