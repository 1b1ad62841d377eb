"""What foreign torch models cost, by formulas worked out by hand: fused layers, modes of torch, weights in disguise.

No peer is asked here; see `test_counter_peers.py` for those.
"""

import pytest
import torch
from counting import Computes, SnnTorchStack, SpikingJellyStack, count, operations, reals, spikes
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neuromorphic import OpCounter, UncountedOperator

MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]


def tally_in(mode, model, *inputs, **options):
    with mode(), OpCounter(model, **options) as counter:
        model(*inputs)
    return counter.tally()


# layers that torch fuses --------------------------------------------------------------------------------------------


class CausalBlock(nn.Module):
    def __init__(self, C, heads, hidden):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(C) for _ in range(2))
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.up, self.down = nn.Linear(C, hidden), nn.Linear(hidden, C)

    def forward(self, x):
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, dim=2)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class CausalTransformer(nn.Module):
    def __init__(self, vocab, C, layers=2):
        super().__init__()
        self.emb, self.positions = nn.Embedding(vocab, C), nn.Embedding(16, C)
        self.blocks = nn.Sequential(*(CausalBlock(C, 2, 4 * C) for _ in range(layers)))
        self.head = nn.Linear(C, vocab, bias=False)

    def forward(self, ids):
        return self.head(self.blocks(self.emb(ids) + self.positions(torch.arange(ids.shape[1]))))


@pytest.mark.parametrize("mode", MODES)
def test_a_causal_transformer_costs_its_formula(mode):
    B, T, C, V = 2, 7, 8, 11
    tally = tally_in(mode, CausalTransformer(V, C), torch.arange(B * T).reshape(B, T) % V, strict=True)
    total = tally.total()
    assert (
        total.dense_ops == total.effective_macs == B * T * (2 * 12 * C * C + C * V) + 2 * B * 2 * C * T * (T + 1) // 2
    )
    # one exp for each head and visible pair
    assert total.exp == 2 * B * 2 * T * (T + 1) // 2
    assert total.effective_acs == 0 and tally.uncounted == ()


def test_causal_attention_over_three_dimensions_performs_the_pairs_that_it_hides():
    # torch fuses four dimensions only; with three it computes every score and masks afterwards
    B, T, C = 2, 5, 8
    attention = Computes(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    total = count(attention, reals(B, T, C), strict=True).total()
    assert (total.dense_ops, total.exp) == (2 * B * T * T * C, B * T * T)


def test_attention_accumulates_in_the_texts_whose_queries_are_spikes():
    T = 4
    q = torch.cat([spikes(1, 1, T, 3), reals(1, 1, T, 3)])
    attention = Computes(F.scaled_dot_product_attention)
    total = count(attention, q, reals(2, 1, T, 3, seed=1), reals(2, 1, T, 3, seed=2)).total()
    assert total.effective_acs == T * int(q[0].sum()) > 0


@pytest.mark.parametrize("mode", MODES)
def test_attention_within_a_text_costs_its_formula(mode):
    B, T, C = 2, 5, 8
    attention, x = nn.MultiheadAttention(C, 2, batch_first=True).eval(), reals(B, T, C)
    tally = tally_in(mode, attention, x, x, x, strict=True)
    assert tally.total().dense_ops == B * 4 * T * C * C + 2 * B * T * T * C


@pytest.mark.parametrize("mode", MODES)
def test_attention_across_texts_costs_its_formula(mode):
    B, T, S, C = 2, 3, 5, 8
    attention = nn.MultiheadAttention(C, 2, batch_first=True).eval()
    tally = tally_in(mode, attention, reals(B, T, C), reals(B, S, C), reals(B, S, C, seed=1), strict=True)
    assert tally.total().dense_ops == B * (2 * T + 2 * S) * C * C + 2 * B * T * S * C


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_layer_costs_its_formula(mode, training):
    B, T, C, hidden = 2, 5, 8, 16
    layer = nn.TransformerEncoderLayer(C, 2, hidden, batch_first=True, dropout=0.0).train(training)
    total = tally_in(mode, layer, reals(B, T, C), strict=True).total()
    assert total.dense_ops == B * T * (4 * C * C + 2 * C * hidden) + 2 * B * T * T * C
    assert total.exp == B * 2 * T * T


@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_performs_the_pairs_that_a_padding_mask_hides(mode):
    B, T, C, hidden = 2, 5, 8, 16
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(C, 2, hidden, batch_first=True), 1).eval()
    is_padding = torch.tensor([[False, False, False, False, False], [False, False, False, True, True]])
    tally = tally_in(mode, encoder, reals(B, T, C), None, is_padding, strict=True)
    assert tally.total().dense_ops == B * T * (4 * C * C + 2 * C * hidden) + 2 * B * T * T * C


RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_costs_its_formula(name, mode):
    B, T, C, H = 2, 5, 8, 6
    total = tally_in(mode, getattr(nn, name)(C, H, num_layers=2, batch_first=True), reals(B, T, C), strict=True).total()
    gates = RECURRENT[name]
    assert total.dense_ops == B * T * gates * H * (C + H + H + H)
    # the state begins as zeros: they are read, and multiply nothing
    assert total.effective_macs == total.dense_ops - 2 * B * gates * H * H


@pytest.mark.parametrize("mode", MODES)
def test_lstm_cells_cost_their_formula(mode):
    B, C, H = 3, 8, 6
    total = tally_in(mode, nn.LSTMCell(C, H), reals(B, C), strict=True).total()
    assert (total.dense_ops, total.effective_macs) == (B * 4 * H * (C + H), B * 4 * H * C)
    assert (total.sigmoid, total.tanh) == (B * 3 * H, B * 2 * H)


# name: model, its inputs, the operator that is listed
UNCOUNTED = {
    "bilinear": (lambda: nn.Bilinear(8, 8, 3), (reals(2, 8), reals(2, 8)), "_trilinear.default"),
    "bags of embeddings": (lambda: nn.EmbeddingBag(7, 4), (torch.arange(6).reshape(2, 3),), "_embedding_bag.default"),
    "embedding that shortens": (
        lambda: nn.Embedding(9, 4, max_norm=0.5),
        (torch.arange(6),),
        "embedding_renorm_.default",
    ),
    "sparse product": (
        lambda: Computes(lambda x, w: torch.sparse.mm(w.to_sparse(), x), reals(8, 8)),
        (reals(8, 3),),
        "_sparse_addmm.default",
    ),
    "sparse factor": (lambda: Computes(lambda x, w: w.to_sparse() * x, reals(8, 8)), (reals(8, 8),), "mul.Tensor"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", UNCOUNTED)
def test_what_torch_fuses_and_no_rule_knows_is_listed(name, mode):
    make, inputs, operator = UNCOUNTED[name]
    tally = tally_in(mode, make(), *inputs)
    assert [entry.operator for entry in tally.uncounted] == [f"aten.{operator}"]


# neurons, norms, modes of torch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_snntorch_neurons_are_seen_step_by_step(mode):
    torch.manual_seed(0)
    model = SnnTorchStack()
    tally = tally_in(mode, model, reals(6, 3, 8), strict=True)
    total = tally.total()
    assert total.events_out == model.emitted > 0
    assert total.neuron_updates == 6 * 3 * (10 + 4)
    # the events of the first neurons are the inputs of the second layer
    assert tally.total(module="down").effective_acs == tally.total(module="down").events_in * 4
    assert tally.total(module="first").events_out == tally.total(module="down").events_in


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_spikingjelly_neurons_are_seen_step_by_step(mode):
    model = SpikingJellyStack("LIF")
    tally = tally_in(mode, model, reals(6, 2, 8), strict=True)
    assert tally.total().neuron_updates == 6 * 2 * 8
    assert tally.total().events_out == model.emitted > 0


def test_spikingjelly_neurons_are_listed_in_inference_mode_where_one_operator_is_all_that_torch_shows():
    tally = tally_in(torch.inference_mode, SpikingJellyStack("LIF"), reals(6, 2, 8))
    assert [entry.operator for entry in tally.uncounted] == ["sj_lif.forward.default"]
    assert tally.total().neuron_updates == 0
    with pytest.raises(UncountedOperator, match="sj_lif"):
        tally_in(torch.inference_mode, SpikingJellyStack("LIF"), reals(6, 2, 8), strict=True)


def test_a_batch_norm_is_one_factor_and_one_term():
    model, x = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)).eval(), spikes(2, 2, 5, 5)
    tally = count(model, x, strict=True)
    norm = tally.total(kind="norm")
    assert (norm.mul, norm.add) == (2 * 4 * 9, 2 * 4 * 9)
    assert tally.total().effective_acs == tally.total(module="0").effective_acs > 0


# of x (2, 3, 8), a vector (8,) and a matrix (8, 8)
OPERATORS = {
    "linear by a vector": (lambda x, vector, matrix: F.linear(x, vector), "dense_ops", 48),
    "linear over transposed tokens": (
        lambda x, vector, matrix: F.linear(x.transpose(0, 1), matrix, vector),
        "dense_ops",
        48 * 8,
    ),
    "product by a copied weight": (lambda x, vector, matrix: x @ matrix.t().contiguous(), "weights_once", 64),
    "larger of two": (lambda x, vector, matrix: torch.max(vector, x), "compare", 48),
    "choice": (lambda x, vector, matrix: torch.where(x > 0, x, 0.0), "select", 48),
    "repeated rows": (lambda x, vector, matrix: x.repeat_interleave(2, 0) * 0.5, "mul", 96),
    "norm": (lambda x, vector, matrix: F.rms_norm(x, (8,), vector), "rsqrt", 6),
    "dropout": (lambda x, vector, matrix: F.dropout(x, 0.5, True), "mul", 48),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_inference_mode_changes_no_count(name):
    function, quantity, formula = OPERATORS[name]
    model, x = Computes(function, reals(8), reals(8, 8)), reals(2, 3, 8)
    tally = tally_in(torch.inference_mode, model, x)
    assert tally == tally_in(torch.no_grad, model, x)
    assert getattr(tally.total(), quantity) == formula


@pytest.mark.parametrize("mode", MODES)
def test_autocast_changes_no_count(mode):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), reals(3, 8)
    exact = tally_in(mode, model, x)
    with torch.autocast("cpu", torch.bfloat16):
        half = tally_in(mode, model, x)
    assert half.sites == exact.sites and half.uncounted == ()


@pytest.mark.parametrize("counted", ["the compiled module", "the original module"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_module_is_counted_as_it_stands(backend, counted):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), reals(3, 8)
    exact = count(model, x).total()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(x)
        with OpCounter(compiled if counted == "the compiled module" else model) as counter:
            compiled(x)
    assert counter.tally().total() == exact
    assert counter.tally().tokens == {"prefill": 3}


def test_a_module_compiled_as_one_graph_is_counted_as_it_is_written():
    model, x = nn.Sequential(nn.Linear(8, 16)), reals(3, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert count(compiled, x).total() == count(model, x).total()


def test_what_a_backward_pass_computes_again_is_not_counted():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    model, x = Checkpointed(nn.Linear(8, 8), nn.Tanh()), reals(3, 8).requires_grad_()
    with OpCounter(model) as counter:
        model(x).sum().backward()
    assert counter.tally().tokens == {"prefill": 3}
    assert (counter.tally().total().dense_ops, counter.tally().total().tanh) == (3 * 64, 3 * 8)


def test_a_module_added_after_the_counter_was_made_is_counted():
    model = nn.Sequential(nn.Linear(8, 8))
    counter = OpCounter(model)
    model.append(nn.ReLU())
    with torch.no_grad(), counter:
        model(reals(3, 8))
    assert counter.tally().total(module="1").compare == 3 * 8


# what is a weight, and which ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_one_hot_product_is_one_accumulation_for_each_token_and_output(mode):
    model = Computes(lambda ids, weight: F.one_hot(ids, 7).to(weight.dtype) @ weight, reals(7, 5))
    tally = tally_in(mode, model, torch.tensor([[0, 3, 6], [3, 3, 1]]))
    total = tally.total(kind="matmul")
    assert operations(total) == (0, 6 * 5, 6 * 7 * 5)
    assert (total.alphabet, total.weights_once) == ("binary", 4 * 5)
    assert tally.uncounted == ()


class TernaryLinear(nn.Linear):
    """Makes its ternary weight anew at every call, where the memory of another's is free."""

    def forward(self, x):
        return F.linear(x, (self.weight / self.weight.abs().mean()).round().clamp(-1, 1))


@pytest.mark.parametrize("calls", [1, 100])
def test_a_weight_made_anew_is_not_mistaken_for_one_that_lay_there_before(calls):
    model = nn.Sequential(*(TernaryLinear(8, 8, bias=False) for _ in range(4)))
    for zero_inputs, layer in enumerate(model):
        layer.weight.data.fill_(0.5)[:, :zero_inputs] = 0
    with torch.no_grad(), OpCounter(model) as counter:
        for _ in range(calls):
            model(torch.ones(1, 8))
    assert counter.tally().total().effective_ops == calls * 8 * (8 + 7 + 6 + 5)


def test_a_state_kept_in_a_buffer_is_counted_in_every_context():
    snntorch = pytest.importorskip("snntorch")
    torch.manual_seed(0)
    model, x = snntorch.RLeaky(beta=0.9, linear_features=8, init_hidden=True), reals(3, 8)
    first, second = (count(model, x).total() for _ in range(2))
    assert first.dense_ops == second.dense_ops == 3 * 8 * 8
    assert (first.mul, first.add) == (second.mul, second.add)


def test_a_kernel_made_of_activations_is_no_weight():
    total = count(Computes(lambda x: F.conv1d(x, 2 * x[:1, :, :3])), reals(2, 5, 8)).total()
    # one output channel of 8 - 2 positions
    assert (total.dense_ops, total.weights_once) == (2 * 6 * 5 * 3, 0)


def test_a_table_made_of_activations_is_no_weight():
    model = Computes(lambda x, weight: F.embedding(torch.tensor([0, 1]), x @ weight), reals(8, 8))
    assert count(model, reals(5, 8)).total().weights_once == 64


def test_a_weight_passed_to_the_model_is_still_a_weight():
    model = Computes(lambda x, passed, weight: x @ passed, reals(8, 8))
    assert count(model, reals(3, 8), model.weights[0]).total().weights_once == 64


WEIGHTS = {
    "written to a given memory": (lambda x, weight: torch.mm(weight, x[0], out=torch.empty(8, 2)), (8, 4), (3, 4, 2)),
    "read in chunks": (lambda x, weight: [F.linear(x, chunk) for chunk in weight.chunk(3)], (24, 8), (3, 8)),
    "one per head": (lambda x, weight: x @ weight, (2, 4, 8), (3, 2, 5, 4)),
    "read by every row": (lambda x, weight: x @ weight, (4, 8), (3, 2, 5, 4)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_number_of_a_weight_is_needed_once(name):
    function, weight, x = WEIGHTS[name]
    total = count(Computes(function, reals(*weight)), reals(*x)).total()
    assert total.weights_once == torch.Size(weight).numel()


def test_the_weights_of_attention_are_needed_once_though_three_inputs_read_them():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), reals(2, 5, 8)
    assert count(attention, x, x + 1, x + 2).total().weights_once == 4 * 8 * 8 + 4 * 8
