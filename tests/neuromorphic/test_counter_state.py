"""State that is carried over tokens and calls, seen or declared; all of it for every token, active or not."""

import pytest
import torch
from counting import SpikingJellyStack, count, reals
from torch import nn

from neuromorphic import OpCounter


def state_of(tally):
    total = tally.total()
    return total.state_reads, total.state_writes, tally.footprint.state


def run(model, calls):
    """`calls` gets the model within a counter."""
    with torch.no_grad(), OpCounter(model) as counter:
        calls(model)
    return state_of(counter.tally())


# layer of H = 6 over 2 texts of 5 tokens: state for one text
LAYERS = {
    "LSTM": (nn.LSTM(8, 6, batch_first=True), 12),
    "GRU": (nn.GRU(8, 6, batch_first=True), 6),
    "RNN": (nn.RNN(8, 6, batch_first=True), 6),
    "two layers": (nn.GRU(8, 6, num_layers=2, batch_first=True), 12),
    "both ways": (nn.LSTM(8, 6, bidirectional=True, batch_first=True), 24),
    "projected": (nn.LSTM(8, 6, proj_size=3, batch_first=True), 9),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", LAYERS)
def test_a_recurrent_layer_reads_and_writes_its_state_for_every_token(name, mode):
    layer, state = LAYERS[name]
    with mode():
        assert run(layer, lambda layer: layer(reals(2, 5, 8))) == (10 * state, 10 * state, state)


def test_packed_texts_have_the_state_of_their_tokens():
    packed = nn.utils.rnn.pack_padded_sequence(reals(2, 5, 8), torch.tensor([5, 3]), batch_first=True)
    assert run(nn.GRU(8, 6, batch_first=True), lambda layer: layer(packed))[:2] == (8 * 6, 8 * 6)


@pytest.mark.parametrize(("cell", "vectors"), [(nn.LSTMCell, 2), (nn.GRUCell, 1), (nn.RNNCell, 1)])
def test_a_cell_reads_and_writes_its_state_in_every_step(cell, vectors):
    def steps(cell):
        state = None
        for _ in range(4):
            state = cell(reals(2, 8), state)

    assert run(cell(8, 3), steps) == (4 * 2 * 3 * vectors, 4 * 2 * 3 * vectors, 3 * vectors)


class Leaky(nn.Module):
    """A cell as others write it: state in, state out."""

    def forward(self, x, potential):
        potential = 0.5 * potential + x
        spike = (potential >= 1).float()
        return spike, potential - spike


class Attribute(nn.Module):
    """A cell that keeps its state."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place, self.potential = in_place, None

    def forward(self, x):
        if self.potential is None:
            self.potential = torch.zeros_like(x)
        if self.in_place:
            self.potential.mul_(0.5).add_(x)
        else:
            self.potential = 0.5 * self.potential + x
        return self.potential.clone()


class Steps(nn.Module):
    def __init__(self, cell, carries):
        super().__init__()
        self.cell, self.carries = cell, carries

    def forward(self, x):
        potential = torch.zeros(x.shape[1:])
        for step in x:
            if self.carries:
                _, potential = self.cell(step, potential)
            else:
                self.cell(step)
        return potential


CELLS = {
    "state in and out": lambda: Steps(Leaky(), True),
    "state in an attribute": lambda: Steps(Attribute(False), False),
    "state written in place": lambda: Steps(Attribute(True), False),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_that_nobody_knows_is_seen_to_carry_its_state(name):
    # 6 steps of 3 texts and 10 neurons
    assert run(CELLS[name](), lambda model: model(reals(6, 3, 10))) == (180, 180, 10)


def test_snntorch_neurons_carry_their_potential():
    snntorch = pytest.importorskip("snntorch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = snntorch.Synaptic(alpha=0.9, beta=0.8)

        def forward(self, x):
            state = self.neuron.init_synaptic()
            for step in x:
                _, *state = self.neuron(step, *state)
            return state[0]

    # current and potential
    assert run(Net(), lambda model: model(reals(6, 3, 10))) == (360, 360, 20)


def test_spikingjelly_neurons_carry_their_potential_over_many_steps():
    assert run(SpikingJellyStack("LIF"), lambda model: model(reals(6, 3, 10))) == (180, 180, 10)


def test_layers_that_are_used_twice_carry_nothing():
    shared = nn.Linear(8, 8)
    assert run(nn.Sequential(shared, shared), lambda model: model(reals(3, 8))) == (0, 0, 0)
    assert run(nn.Linear(8, 8), lambda model: model(model(reals(3, 8)))) == (0, 0, 0)


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_a_key_value_cache_is_read_whole_and_written_by_the_token(implementation):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        **{"hidden_size": 8, "intermediate_size": 16, "vocab_size": 31, "bos_token_id": 1, "eos_token_id": None},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(2, 31, (2, 5))
    options = {} if implementation == "dynamic" else {"cache_implementation": "static"}
    reads, writes, state = run(
        model, lambda m: m.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, **options)
    )
    # 2 layers, keys and values of one head of 4: 16 numbers for each token of each of 2 texts; 8 tokens in the end
    assert (writes, state) == (8 * 2 * 16, 8 * 16)
    # three steps read what was kept; where there is room from the start, four calls read all of it
    assert reads == {"dynamic": 5 + 6 + 7, "static": 4 * 8}[implementation] * 2 * 16


def test_what_declares_its_state_is_not_seen_to_carry_it_twice():
    class Declares(Leaky):
        def op_cost(self, args, kwargs, output):
            return {"state_reads": 30, "state_writes": 30, "state_elements": 10}

    assert run(Steps(Declares(), True), lambda model: model(reals(6, 3, 10))) == (180, 180, 10)


def test_one_call_of_a_layer_without_state_reads_none():
    assert state_of(count(nn.Linear(8, 4), reals(3, 8))) == (0, 0, 0)
