"""Tokens read by replaying one step in the same memory, with a stand-in for CUDA's graphs: the model's own outcome."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from spikegpt.config import INPUT_NEURON, ModelConfig, NeuronConfig
from spikegpt.generate.engine import Engine
from spikegpt.generate.graphs import ForwardStep, capture_of
from spikegpt.model import SpikeGPT

SIZES = {"n_layer": 2, "n_embd": 24, "vocab_size": 31, "dropout": 0.0}
LEAKY = NeuronConfig(**{**INPUT_NEURON.to_dict(), "membrane_decay": 0.4, "reset": "zero"})
MODELS = {
    "none": {"spiking": "none"},
    "output": {"spiking": "output"},
    "input": {"spiking": "input"},
    "input, leaky": {"spiking": "input", "neuron": LEAKY},
    "rwkv7": {"mixer": "rwkv7", "head_size": 8, "lora_ranks": (3, 5, 2, 4), "spiking": "none"},
    "rwkv7, state neurons": {"mixer": "rwkv7", "head_size": 8, "spiking": "input", "state_neurons": True},
}
START, T = 5, 14


class Step(torch.nn.Module):
    """Somebody's own neurons."""

    def forward(self, current, state=None):
        return (current >= 1).to(current.dtype) + 0 * current, None


class Recorder:
    """As a CUDA graph does it: nothing runs while it is made, and each replay writes to the memory of the first."""

    def __init__(self):
        self.step, self.made, self.replayed = None, 0, 0

    def __call__(self, run):
        self.made += 1
        logits = None

        def replay():
            nonlocal logits
            self.replayed += 1
            run()
            if logits is None:
                logits = self.step._logits.clone()
            self.step._logits = logits.copy_(self.step._logits)

        return replay


def make(**changes) -> SpikeGPT:
    torch.manual_seed(0)
    return SpikeGPT(ModelConfig(**{**SIZES, **changes})).eval()


@pytest.fixture
def ids():
    return torch.randint(31, (3, T), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
def test_replays_give_the_models_logits_and_state(model, ids):
    model, recorder = make(**MODELS[model]), Recorder()
    recorder.step = step = ForwardStep(model, recorder)
    begun = model(ids[:, :START]).state
    kept = [part.clone() for part in tree_leaves(begun) if part is not None]
    step.take(begun)
    logits = [step.step(ids[:, t]) for t in range(START, T - 2)]
    between = step.give()
    logits += [step.step(ids[:, t]) for t in range(T - 2, T)]
    # a first token to know the state, one graph for all others
    assert (recorder.made, recorder.replayed) == (1, T - START - 1)
    whole = model(ids)
    torch.testing.assert_close(torch.stack(logits, dim=1), whole.logits[:, START:], rtol=1e-4, atol=1e-4)
    for state, wanted in ((step.give(), whole.state), (between, model(ids[:, : T - 2]).state)):
        for found, part in zip(tree_leaves(state), tree_leaves(wanted), strict=True):
            assert (found is None) == (part is None)
            if found is not None:
                torch.testing.assert_close(found, part, rtol=1e-4, atol=1e-4)
    # what it was given is the caller's
    for found, part in zip((part for part in tree_leaves(begun) if part is not None), kept, strict=True):
        assert torch.equal(found, part)


@torch.no_grad()
def test_another_number_of_texts_is_another_graph(ids):
    model, recorder = make(spiking="input"), Recorder()
    recorder.step = step = ForwardStep(model, recorder)
    for texts in (3, 1, 2):
        step.take(model(ids[:texts, :START]).state)
        for t in range(START, START + 3):
            logits = step.step(ids[:texts, t])
        wanted = model(ids[:texts, : START + 3]).logits[:, -1]
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert recorder.made == 3


def test_only_our_own_code_on_a_gpu_is_captured(monkeypatch):
    """The device is made up."""

    class Foreign(SpikeGPT):
        def forward(self, ids, state=None, *, last_only=False):
            return super().forward(ids, state, last_only=last_only)

    ours = make(spiking="input")
    others = [SpikeGPT(ours.config, lambda site: Step()), Foreign(ours.config)]
    assert capture_of(ours) is None
    monkeypatch.setattr(SpikeGPT, "device", property(lambda model: torch.device("cuda")))
    assert capture_of(ours) is not None
    assert [capture_of(other) for other in others] == [None, None]


@torch.no_grad()
def test_the_engine_replays_both_products_of_spikes_and_dense_ones(monkeypatch, ids):
    """The device is made up: the engine of a spike-driven model by rows, and of its twin."""
    from spikegpt.generate import engine as engine_module
    from spikegpt.generate import graphs

    for spiking in ("input", "none"):
        model, recorder = make(spiking=spiking), Recorder()
        state, wanted = model(ids[:, :START]).state, model(ids).logits[:, START:]
        with monkeypatch.context() as made_up:
            made_up.setattr(engine_module, "is_installed", lambda package: True)
            made_up.setattr(graphs, "_cuda_graph", recorder)
            made_up.setattr(SpikeGPT, "device", property(lambda model: torch.device("cuda")))
            engine = Engine(model)
        recorder.step = engine._decoder._forward if spiking == "input" else engine._forward
        engine.start(state)
        logits = torch.stack([engine.step(ids[:, t]) for t in range(START, T)], dim=1)
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
        assert recorder.replayed == T - START - 1
        if spiking == "input":
            fired = {name: int(model(ids).spikes[name][:, START:].count_nonzero()) for name in model.synapses()}
            assert engine.spike_counts() == fired
