"""Neurons are one kernel with what drives them only where nobody could tell: all who look on see what they saw."""

import dataclasses
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from neuromorphic import OpCounter
from spikegpt.config import ModelConfig, NeuronConfig
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import firing_rate
from spikegpt.neuron.lif import LIF

FUSED = {f"spikegpt.{name}_lif.default" for name in ("shifted", "squared_relu", "gated")}
# the gate of the channel mix drives no neurons
APART = {f"spikegpt.{name}.default" for name in ("token_shift", "squared_relu")}
IDS = torch.arange(14).view(2, 7)


class Operators(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


class Heir(LIF):
    """Somebody's own neuron."""


def make_model(factory=None, **changes):
    torch.manual_seed(0)
    config = ModelConfig(n_layer=2, n_embd=24, vocab_size=50, dropout=0.0, **changes)
    return SpikeGPT(config, factory)


def operators_of(model, *state):
    with Operators() as seen:
        model(IDS, *state)
    return seen.names & (FUSED | APART)


def hooked(model, kind):
    hooks = [getattr(placed.neuron, f"register_{kind}")(lambda *_: None) for placed in model.sites().values()]
    assert hooks
    return hooks


@contextmanager
def every_module_hooked():
    hook = register_module_forward_hook(lambda *_: None)
    yield
    hook.remove()


@pytest.mark.parametrize("shared_neurons", [False, True])
def test_training_fuses_and_reading_does_not(shared_neurons):
    model = make_model(shared_neurons=shared_neurons)
    assert operators_of(model) == FUSED
    assert operators_of(model, model(IDS).state) == FUSED
    with torch.no_grad():
        assert not operators_of(model)
    assert operators_of(make_model(spiking="none")) == APART


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "bfloat16"])
def test_a_model_that_is_watched_trains_as_one_that_is_not(is_half):
    results = []
    for is_watched in (False, True):
        model = make_model()
        if is_watched:
            hooked(model, "forward_hook")
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            logits, _, spikes = model(IDS)
        (logits.float().square().mean() + sum(map(firing_rate, spikes.values()))).backward()
        results.append((logits, spikes, {name: p.grad for name, p in model.named_parameters()}))
    (logits, spikes, grads), (watched_logits, watched_spikes, watched_grads) = results
    assert torch.equal(logits, watched_logits) and list(spikes) == list(watched_spikes)
    assert all(torch.equal(spike, watched_spikes[name]) for name, spike in spikes.items())
    for name, grad in grads.items():
        # in half precision the gradients of currents are not rounded between two kernels
        assert torch.allclose(grad, watched_grads[name], rtol=0, atol=(0.05 if is_half else 1e-5) * grad.abs().max())


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_whoever_hooks_a_neuron_is_called(kind):
    model = make_model()
    hooks = hooked(model, kind)
    assert not operators_of(model) & FUSED
    for hook in hooks:
        hook.remove()
    assert operators_of(model) == FUSED


def test_one_hook_takes_apart_what_it_looks_into_and_nothing_else():
    model, seen = make_model(), []
    model.blocks[1].att.value_neuron.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    assert operators_of(model) == FUSED | {"spikegpt.token_shift.default"}
    assert [current.shape for current in seen] == [(2, 7, 24)]


@pytest.mark.parametrize(
    ("context", "factory", "changes"),
    [
        (every_module_hooked, None, {}),
        (ExitStack, lambda site: Heir(site.channels, site.neuron), {}),
        (ExitStack, lambda site: LIF(site.channels, site.neuron, backend="reference"), {}),
        (
            ExitStack,
            None,
            {"neuron": NeuronConfig(levels=4, reset="subtract", detach_reset=True, surrogate="rectangular", slope=1.0)},
        ),
        (ExitStack, None, {"neuron": NeuronConfig(membrane_decay=0.0), "hidden_levels": 1}),
    ],
    ids=["all modules hooked", "an heir", "a backend by name", "with memory", "binary"],
)
def test_neurons_that_are_more_than_the_kernel_are_called(context, factory, changes):
    model = make_model(factory, **changes)
    with context():
        assert not operators_of(model) & FUSED


def test_neurons_that_are_annealed_in_are_called():
    model = make_model()
    for placed in model.sites().values():
        placed.neuron.spike_share = 0.5
    assert not operators_of(model) & FUSED
    assert operators_of(model.eval()) == FUSED


def test_neurons_of_several_kinds_are_not_one_kernel():
    def factory(site):
        levels = 2 if site.name == "key_neuron" else site.neuron.levels
        return LIF(site.channels, dataclasses.replace(site.neuron, levels=levels))

    found = operators_of(make_model(factory))
    assert found & {"spikegpt.shifted_lif.default", "spikegpt.token_shift.default"} == {"spikegpt.token_shift.default"}


def test_a_replaced_forward_is_called():
    model, called = make_model(), []
    neuron = model.blocks[0].ffn.value_neuron
    neuron.forward = lambda current, state: called.append(current) or LIF.forward(neuron, current, state)
    model(IDS)
    assert len(called) == 1


def test_fused_spikes_are_verified_as_all_others(monkeypatch):
    model, verified = make_model(), []
    monkeypatch.setattr(LIF, "verify", lambda neuron, spikes: verified.append(neuron))
    assert operators_of(model) == FUSED
    assert set(verified) == {placed.neuron for placed in model.sites().values()}


def test_a_counter_sees_the_neurons_of_a_training_step():
    model = make_model()
    with OpCounter(model) as counter:
        model(IDS)
    tally = counter.tally()
    fired = {site.module for site in tally.sites if site.operator == "spikegpt::integer_lif_memoryless"}
    assert fired == set(model.sites()) and not tally.uncounted
