"""What stays a weight: optimizer steps, pruning, scales in buffers, parameters from elsewhere, tables; and constants.

Three binary rows and one real row are told apart only where the other side is known to be a weight.
"""

import pytest
import torch
from counting import Computes, brute_force, count, reals, spikes
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from neuromorphic import OpCounter

X = torch.cat([spikes(3, 8), reals(1, 8)])


def products(tally):
    total = tally.total(kind="matmul")
    return total.effective_macs, total.effective_acs, total.weights_per_event


def by_rows(weight, bias=False):
    """What the product of X and `weight` (out, in) costs, row by row; each nonzero input fetches its column."""
    macs, acs, _ = brute_force(X, weight)
    fetched = int(X.count_nonzero()) * len(weight) + bias * len(X) * len(weight)
    return macs, acs, fetched


def layer(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(8, 4)


def test_three_spiking_rows_accumulate_and_the_real_one_multiplies():
    model = layer()
    assert products(count(model, X)) == by_rows(model.weight, True)
    assert products(count(model, X))[0] == 8 * 4


def step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone() + 1
    optimizer(model.parameters(), lr=0.1).step()


CHANGES = {
    "SGD": lambda model: step(model, torch.optim.SGD),
    "Adam": lambda model: step(model, torch.optim.Adam),
    "AdamW, fused": lambda model: step(model, lambda parameters, lr: torch.optim.AdamW(parameters, lr, fused=True)),
    "load_state_dict": lambda model: model.load_state_dict(layer(1).state_dict()),
    "load_state_dict, assigned": lambda model: model.load_state_dict(layer(1).state_dict(), assign=True),
    "new data": lambda model: setattr(model.weight, "data", torch.zeros(4, 8).fill_diagonal_(2.0)),
    "written data": lambda model: model.weight.data[:, :5].zero_(),
    "another parameter": lambda model: setattr(model, "weight", nn.Parameter(reals(4, 8, density=0.5))),
    "double": lambda model: model.double().float(),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_that_is_changed_between_calls_is_a_weight(change, mode):
    model = layer()
    with mode(), OpCounter(model) as counter:
        model(X)
        before = products(counter.tally())
        with torch.no_grad():
            CHANGES[change](model)
        model(X)
    both = tuple(ours + theirs for ours, theirs in zip(before, by_rows(model.weight, True), strict=True))
    assert products(counter.tally()) == both


PRUNED = {
    "by size": lambda model: prune.l1_unstructured(model, "weight", amount=0.4),
    "at random": lambda model: prune.random_unstructured(model, "weight", amount=0.4),
    "by rows": lambda model: prune.ln_structured(model, "weight", amount=0.5, n=1, dim=0),
    "the bias": lambda model: prune.l1_unstructured(model, "bias", amount=2),
    "twice": lambda model: prune.l1_unstructured(
        prune.l1_unstructured(model, "weight", amount=0.4), "weight", amount=0.2
    ),
}


@pytest.mark.parametrize("name", PRUNED)
@pytest.mark.parametrize("is_whole_model", [True, False])
def test_a_pruned_weight_is_one(name, is_whole_model):
    pruned = PRUNED[name](layer())
    tally = count(pruned if is_whole_model else nn.Sequential(pruned), X)
    macs, acs, _ = by_rows(pruned.weight)
    assert products(tally)[:2] == (macs, acs)
    assert tally.total().mul == 0
    assert tally.total().weights_once >= 32


PARAMETRIZED = {
    "weight norm": parametrizations.weight_norm,
    "old weight norm": torch.nn.utils.weight_norm,
    "spectral norm": lambda model: parametrizations.spectral_norm(model).eval(),
    "old spectral norm": lambda model: torch.nn.utils.spectral_norm(model).eval(),
    "orthogonal": parametrizations.orthogonal,
    "one's own": lambda model: parametrize.register_parametrization(model, "weight", nn.Softplus()) or model,
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_weight_that_is_made_of_weights_is_one(name):
    model = PARAMETRIZED[name](layer())
    assert products(count(model, X)) == by_rows(model.weight, True)


BUFFERS = {
    "scaled": lambda x, w, s: x @ (w * s),
    "dequantised": lambda x, w, s: x @ ((w * 8).to(torch.int8).float() * s / 8),
    "shifted": lambda x, w, s: x @ (w + s),
    "cast": lambda x, w, s: (x.double() @ w.double()).float(),
    "as a convolution": lambda x, w, s: F.linear(x, (w * s).t()),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_a_weight_kept_in_buffers_is_one_and_its_scale_is_prepared(name):
    model = Computes(BUFFERS[name], buffers=(reals(8, 4), reals(4)))
    tally = count(model, X, strict=True)
    assert products(tally) == by_rows(reals(4, 8))
    assert tally.total().mul == tally.total().add == 0


def test_a_state_in_a_buffer_is_no_preparation():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("decay", torch.full((8,), 0.5))
            self.register_buffer("potential", torch.zeros(8))

        def forward(self, x):
            self.potential = self.decay * self.potential + x
            return self.potential

    model = Leaky()
    with torch.no_grad(), OpCounter(model) as counter:
        for _ in range(3):
            model(reals(8))
    assert (counter.tally().total().mul, counter.tally().total().add) == (3 * 8, 3 * 8)


def test_a_state_that_a_parameter_holds_is_no_preparation():
    class Plastic(nn.Module):
        def __init__(self):
            super().__init__()
            self.trace = nn.Parameter(torch.ones(8, 4))

        def forward(self, x):
            self.trace.mul_(0.5).add_(x.mean())
            return x @ self.trace

    model = Plastic()
    with torch.no_grad(), OpCounter(model) as counter:
        for _ in range(3):
            model(X)
    # the first decay may be a preparation; the products know their weight
    assert counter.tally().total().mul in (2 * 32, 3 * 32)
    assert products(counter.tally())[0] == 3 * 8 * 4


def test_parameters_that_are_handed_over_are_weights():
    model = layer()
    others = {name: value.detach() * 2 for name, value in layer(1).named_parameters()}
    with torch.no_grad(), OpCounter(model) as counter:
        torch.func.functional_call(model, others, (X,))
    assert products(counter.tally()) == by_rows(others["weight"], True)


def test_a_mask_made_in_the_forward_pass_leaves_a_weight_one():
    causal = Computes(lambda x, w: x @ (w * torch.ones(8, 8).triu()), reals(8, 8))
    assert products(count(causal, X)) == by_rows(reals(8, 8).triu().t())


# tables -------------------------------------------------------------------------------------------------------------

IDS = torch.tensor([[1, 4, 4], [0, 1, 8]])
LOOKUPS = {
    "table[ids]": lambda ids, table: table[ids],
    "index_select": lambda ids, table: table.index_select(0, ids.flatten()),
    "gather": lambda ids, table: table.gather(0, ids.reshape(6, 1).expand(6, 4)),
    "take_along_dim": lambda ids, table: torch.take_along_dim(table, ids.reshape(6, 1), 0),
    "columns": lambda ids, table: table.t().contiguous()[:, ids],
    "two indices": lambda ids, table: table[ids[..., None], torch.arange(4)],
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_table_that_is_looked_up_is_an_embedding(name):
    total = count(Computes(LOOKUPS[name], reals(9, 4)), IDS, strict=True).total()
    want = count(Computes(lambda ids, table: F.embedding(ids, table), reals(9, 4)), IDS).total()
    found = (total.weights_per_event, total.weights_dense, total.weights_once)
    assert found == (want.weights_per_event, want.weights_dense, want.weights_once) == (24, 24, 16)


def test_a_mask_looks_up_the_rows_that_it_shows():
    shown = torch.tensor([True, False, True, False])
    total = count(Computes(lambda shown, table: table[shown], reals(4, 3)), shown).total()
    assert (total.weights_per_event, total.weights_once) == (6, 6)


# constants ----------------------------------------------------------------------------------------------------------

CONSTANTS = {
    "a product": lambda x, w: (torch.arange(100.0)[:, None] * torch.ones(8)) @ w,
    "a product from the left": lambda x, w: w.t() @ torch.arange(800.0).reshape(8, 100),
    "a layer": lambda x, w: F.linear(torch.linspace(1, 2, 800).reshape(100, 8), w),
    "positions": lambda x, w: torch.sin(torch.arange(800.0)).reshape(100, 8) @ w,
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_product_of_constants_and_a_weight_is_work(name):
    total = count(Computes(CONSTANTS[name], reals(8, 8)), torch.ones(1)).total()
    assert (total.dense_ops, total.weights_once) == (6400, 64)


def test_functions_of_constants_are_work():
    total = count(Computes(lambda x: torch.arange(10.0).mul(0.5).sin()), torch.ones(1)).total()
    assert (total.mul, total.trigonometric) == (10, 10)


def test_one_number_of_the_program_is_a_part_of_the_weight():
    model = Computes(lambda x, w: x @ (w * torch.tensor(0.5)), reals(8, 4))
    tally = count(model, X)
    assert products(tally) == by_rows(reals(4, 8))
    assert tally.total().mul == 0


def test_learned_positions_are_fetched():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(16, 4)

        def forward(self, x):
            return x + self.table(torch.arange(x.shape[1]))

    assert count(Positions(), reals(2, 5, 4)).total(kind="embedding").weights_per_event == 5 * 4
