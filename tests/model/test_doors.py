"""What a model, its neurons and the engine refuse, and in which words: ids, states, factories, sizes."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from spikegpt.common import memory
from spikegpt.config import ModelConfig, model_preset
from spikegpt.generate.engine import Engine
from spikegpt.kernels import lif
from spikegpt.model.network import SpikeGPT, check_sizes, parameters_of
from spikegpt.neuron import LIF, SnnTorchNeuron, SpikingJellyNeuron
from spikegpt.neuron.proof import check_neuron

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def make(spiking="input", **changes) -> SpikeGPT:
    torch.manual_seed(0)
    return SpikeGPT(ModelConfig(**{"n_layer": 2, "n_embd": 8, "vocab_size": 11, "spiking": spiking} | changes)).eval()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_whole_numbers_of_any_size_are_ids(dtype):
    model = make()
    assert torch.equal(model(IDS.to(dtype)).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (IDS.bool(), "whole numbers .* got torch.bool"),
        (IDS.float(), "whole numbers .* got torch.float32"),
        ([[1, 2]], r"ids must be a tensor \(B, T\) of whole numbers, got a list"),
        (None, "got a NoneType"),
        ("abc", "got a str"),
    ],
)
def test_what_is_no_id_is_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        make()(ids)


# a dense state in a published model is missing from this list: its neurons begin anew, as those of any state may
@pytest.mark.parametrize(
    ("source", "reader"),
    [("none", "input"), ("output", "input"), ("output", "none"), ("input", "none"), ("input", "output")],
)
def test_a_state_of_another_block_is_refused(source, reader):
    with pytest.raises(ValueError, match="the state does not fit"):
        make(reader)(IDS, make(source)(IDS).state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (make()(IDS[:1]).state, r"it is of 1 text\(s\), the ids are of 2"),
        (make(n_embd=12)(IDS).state, "of width 8"),
        (make(n_layer=1)(IDS).state, "it has 1 layers, the model 2"),
        ((1, 2), "it holds a int where this model has a BlockState"),
        (torch.zeros(2), "it holds a Tensor"),
        (tree_map(lambda part: part[0] if isinstance(part, torch.Tensor) else part, make()(IDS).state), "2 dimensions"),
    ],
    ids=["texts", "width", "layers", "numbers", "tensor", "vectors"],
)
def test_a_state_that_does_not_fit_is_refused_before_and_after_the_first_pass(state, message):
    model = make()
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            model(IDS, state)
        model(IDS)


def test_what_is_missing_of_a_state_is_the_beginning_of_a_text():
    model = make()
    state = tuple(block._replace(channel_mix=None) for block in model(IDS).state)
    assert model(IDS, state).logits.shape == (2, 3, 11)
    assert torch.equal(model(IDS, (None, None)).logits, model(IDS).logits)


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize(
    "tokens",
    [torch.tensor([1.7, 2.0]), torch.tensor([True, False]), torch.tensor([1]), torch.tensor([[1], [2]]), 3, [1, 2]],
)
def test_the_engine_reads_whole_ids_one_per_text(tokens, by_rows):
    model = make()
    engine = Engine(model)
    engine.start(model(IDS).state, by_rows=by_rows)
    with pytest.raises(ValueError, match=r"step: want 2 token ids, one per text"):
        engine.step(tokens)


@pytest.mark.parametrize("state", [None, (), [1], make("output")(IDS).state, make(n_embd=12)(IDS).state])
def test_the_engine_starts_with_a_state_of_its_model_only(state):
    with pytest.raises(ValueError, match=r"start: want the state|the state does not fit"):
        Engine(make()).start(state)


@pytest.mark.parametrize("threads", [-1, 1.5, True, "2"])
def test_the_engine_has_a_whole_number_of_threads(threads):
    with pytest.raises(ValueError, match="threads must be a whole number"):
        Engine(make(), threads=threads)


def test_a_model_is_made_of_a_configuration():
    with pytest.raises(ValueError, match="config is a dict, want a ModelConfig"):
        SpikeGPT({"n_layer": 2})
    with pytest.raises(ValueError, match="config is a dict, want a NeuronConfig"):
        LIF(4, {"levels": 1})
    with pytest.raises(ValueError, match="the current has 5 channels, the neurons are 4"):
        LIF(4)(torch.zeros(1, 3, 5))


@pytest.mark.parametrize("channels", [0, -1, True, 3.0, "3", None])
def test_neurons_are_counted_in_whole_numbers(channels):
    with pytest.raises(ValueError, match="channels must be a whole number of at least 1"):
        LIF(channels)


@pytest.mark.parametrize("state", [5, {"a": 1}, "state"], ids=repr)
def test_a_state_is_a_tuple(state):
    with pytest.raises(ValueError, match="the state does not fit: it holds a "):
        make()(IDS, state)


@pytest.mark.parametrize("current", [None, [1.0], "abc"], ids=repr)
def test_a_current_is_a_tensor(current):
    with pytest.raises(ValueError, match=r"current must be a tensor \(B, T, C\)"):
        lif(current)


class Forgetful(nn.Module):
    """Keeps its potential to itself."""

    def forward(self, current, state=None):
        return (current.cumsum(1) > 1).float(), None


class Batchless(nn.Module):
    def forward(self, current, state=None):
        return current, current.sum(0)


class Random(nn.Module):
    def forward(self, current, state=None):
        return (torch.rand_like(current) < 0.5).float(), None


class Inside(nn.Module):
    """Leaky neurons that keep their membrane inside, from call to call."""

    membrane: torch.Tensor | float = 0.0

    def forward(self, current, state=None):
        spikes = []
        for drive in current.unbind(1):
            self.membrane = 0.5 * self.membrane + drive
            spikes.append((self.membrane >= 1).to(current.dtype))
        return torch.stack(spikes, 1), None


class InsideUntilAnew(Inside):
    """The same, but a text that begins anew is told by its state: two texts in turns are mixed up."""

    def forward(self, current, state=None):
        if state is None:
            self.membrane = 0.0
        return super().forward(current)[0], torch.ones(len(current), 1)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("lif", "neuron is 'lif'; want a function that makes a new module for every site"),
        (nn.ReLU(), r"neuron is ReLU\(\); want a function"),
        (LIF(8), "neuron is LIF"),
        (LIF, "a neuron factory is given a site"),
        (lambda site: nn.ReLU, "the neuron factory returned <class"),
        (
            lambda site: Inside(),
            "Inside spikes otherwise when the same text begins anew: it keeps",
        ),
        (lambda site: InsideUntilAnew(), "InsideUntilAnew spikes otherwise token by token"),
        (lambda site: None, "the neuron factory returned None, want a module"),
        (lambda site: lambda current, state=None: (current, state), "want a module"),
        (lambda site: nn.ReLU(), r"ReLU cannot be called with \(current"),
        (lambda site: nn.Identity(), r"a neuron returns \(spikes"),
        (lambda site: Forgetful(), "Forgetful spikes otherwise token by token"),
        (lambda site: Batchless(), "the texts come first"),
        (lambda site: LIF(site.channels + 1), "the current has 8 channels"),
    ],
)
def test_a_factory_that_makes_no_neurons_is_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        SpikeGPT(ModelConfig(n_layer=1, n_embd=8, spiking="output"), neuron=factory)(IDS)


def test_a_neuron_that_draws_at_random_is_taken_and_takes_nothing_from_the_callers_generator():
    torch.manual_seed(3)
    check_neuron(Random(), 8)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)


def raw(library: str):
    if library == "snntorch":
        return pytest.importorskip("snntorch").Leaky(beta=0.5)
    return pytest.importorskip("spikingjelly.activation_based.neuron").LIFNode(step_mode="m")


@pytest.mark.parametrize(("library", "adapter"), [("snntorch", SnnTorchNeuron), ("spikingjelly", SpikingJellyNeuron)])
def test_a_raw_neuron_of_another_library_is_refused_and_its_adapter_named(library, adapter):
    config = ModelConfig(n_layer=1, n_embd=8, spiking="output")
    with pytest.raises(ValueError, match=f"of {library} carries no state .* return {adapter.__name__}"):
        SpikeGPT(config, neuron=lambda site: raw(library))
    SpikeGPT(config, neuron=lambda site: adapter(raw(library)))


@pytest.mark.parametrize(("library", "adapter"), [("spikingjelly", SnnTorchNeuron), ("snntorch", SpikingJellyNeuron)])
def test_an_adapter_takes_neurons_of_its_library_only(library, adapter):
    with pytest.raises(ValueError, match=f"is of {library}; {adapter.__name__} is for"):
        adapter(raw(library))
    with pytest.raises(ValueError, match="wants a neuron of"):
        adapter(None)


@pytest.mark.parametrize("kind", ["RLeaky", "RSynaptic"])
def test_a_recurrent_neuron_of_snntorch_reads_its_own_spikes(kind):
    snn = pytest.importorskip("snntorch")
    # so strong that spikes would come otherwise without it
    options = {"beta": 0.5, "V": -1.0, "all_to_all": False} | ({"alpha": 0.8} if kind == "RSynaptic" else {})
    neuron, current = (
        getattr(snn, kind)(**options),
        2 * torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)),
    )
    state, spikes = neuron.reset_mem(), []
    for drive in current.unbind(1):
        state = neuron(drive, *state)
        spikes.append(state[0])
    assert torch.equal(SnnTorchNeuron(getattr(snn, kind)(**options))(current)[0], torch.stack(spikes, 1))


@pytest.mark.parametrize(
    "changes", [{}, {"spiking": "output"}, {"spiking": "none", "n_layer": 1}, {"spiking_head": True}]
)
def test_parameters_are_counted_without_making_them(changes):
    config = ModelConfig(**{"n_embd": 16} | changes)
    assert parameters_of(config) == SpikeGPT(config, init=False).count_parameters()


def test_a_model_beyond_the_memory_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match=r"n_embd 65536, vocab_size 256 needs [\d,.]+ GB, [\d,.]+ GB are free"):
        SpikeGPT(ModelConfig(n_layer=1024, n_embd=65_536))
    with pytest.raises(ValueError, match="tokens at once needs"):
        check_sizes(ModelConfig(), tokens=2**20 * 2**20)
    with torch.device("meta"):
        assert SpikeGPT(model_preset("spikegpt-216m"), init=False).device.type == "meta"


def test_a_container_may_have_less_memory_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert memory.available_bytes() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() > 10**6


def test_where_nobody_knows_the_memory_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.check_fits(10**30, "a model", "take less")
