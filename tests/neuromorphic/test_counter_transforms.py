"""What torch wraps around a model never breaks it: torch.func, control flow, tensors of other kinds, other counters."""

import pytest
import torch
from counting import Computes, brute_force, count, operations, reals, spikes
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from neuromorphic import OpCounter

X = torch.cat([spikes(3, 8), reals(1, 8)])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def tally_of(net, run):
    with OpCounter(net) as counter:
        run(net)
    return counter.tally()


def loss(net):
    return lambda x: net(x).sum()


FORWARD_ONCE = {
    "vmap": lambda net: torch.func.vmap(net)(X),
    "vmap of vmap": lambda net: torch.func.vmap(torch.func.vmap(net))(X[None]),
    "grad": lambda net: torch.func.grad(loss(net))(X),
    "vjp": lambda net: torch.func.vjp(net, X)[1](torch.ones(4, 2)),
    "grad_and_value": lambda net: torch.func.grad_and_value(loss(net))(X),
    "functional_call": lambda net: torch.func.functional_call(net, dict(net.named_parameters()), (X,)),
    "grad by parameters": lambda net: torch.func.grad(lambda p: torch.func.functional_call(net, p, (X,)).sum())(
        {name: parameter.detach() for name, parameter in net.named_parameters()}
    ),
}


@pytest.mark.parametrize("name", FORWARD_ONCE)
def test_a_transformed_model_costs_its_forward_pass(name):
    net = model()
    tally = tally_of(net, FORWARD_ONCE[name])
    assert operations(tally.total()) == operations(count(net, X).total())
    assert tally.tokens == {"prefill": 4} and tally.uncounted == ()


FORWARD_AND_MORE = {
    "jvp": lambda net: torch.func.jvp(net, (X,), (X,)),
    "jacfwd": lambda net: torch.func.jacfwd(net)(X[0]),
    "jacrev": lambda net: torch.func.jacrev(net)(X[0]),
    "hessian": lambda net: torch.func.hessian(loss(net))(X[0]),
    "ensemble": lambda net: torch.func.vmap(lambda p, x: torch.func.functional_call(net, p, (x,)), in_dims=(0, None))(
        torch.func.stack_module_state([net, net])[0], X
    ),
}


@pytest.mark.parametrize("name", FORWARD_AND_MORE)
def test_what_is_computed_besides_never_breaks_the_model(name):
    net = model()
    assert tally_of(net, FORWARD_AND_MORE[name]).total().dense_ops >= 8 * 8 + 8 * 2


# operators that call others: of x (4, 8) and w (8, 8)
HIGHER_ORDER = {
    "while_loop": (
        lambda x, w: torch._higher_order_ops.while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, x @ w), (torch.tensor(0), x)
        ),
        3 * 256,
    ),
    "map": (lambda x, w: torch._higher_order_ops.map(lambda row: row @ w, x), 256),
    "cond": (lambda x, w: torch.cond(x.sum() > 0, lambda x: x @ w, lambda x: x + 1, (x,)), 256),
    "scan": (
        lambda x, w: torch._higher_order_ops.scan(lambda h, row: (h @ w + row, h + 0), torch.zeros(8), x),
        256,
    ),
    "associative_scan": (
        lambda x, w: torch._higher_order_ops.associative_scan(torch.add, x, 0, combine_mode="generic"),
        0,
    ),
    "cond in while_loop": (
        lambda x, w: torch._higher_order_ops.while_loop(
            lambda i, x: i < 2,
            lambda i, x: (i + 1, torch.cond(x.sum() > 0, lambda x: x @ w, lambda x: x + 1, (x,))),
            (torch.tensor(0), x),
        ),
        2 * 256,
    ),
    "map in map": (
        lambda x, w: torch._higher_order_ops.map(
            lambda rows: torch._higher_order_ops.map(lambda row: row @ w, rows), x.reshape(2, 2, 8)
        ),
        256,
    ),
    "scan from the end": (
        lambda x, w: torch._higher_order_ops.scan(lambda h, row: (h @ w + row, h + 0), torch.zeros(8), x, reverse=True),
        256,
    ),
    "strict_mode": (lambda x, w: torch._higher_order_ops.strict_mode(lambda x: (x @ w,), (x,)), 256),
}

# those that call an operator by its name, or a function that torch keeps apart; and what is no operator at all
APART = {
    "invoke_subgraph": lambda x, w: torch.compiler.nested_compile_region(lambda x: x @ w)(x),
    "out_dtype": lambda x, w: torch._higher_order_ops.out_dtype(
        torch.ops.aten.mm.default, torch.int32, (8 * x).to(torch.int8), (8 * w).to(torch.int8)
    ),
    "with_effects": lambda x, w: torch._higher_order_ops.effects.with_effects(
        torch.zeros(0), torch.ops.aten.mm.default, x, w
    ),
    "checkpoint": lambda x, w: checkpoint(lambda x: x @ w, x, use_reentrant=False),
    "checkpoint, reentrant": lambda x, w: checkpoint(lambda x: x @ w, x, use_reentrant=True),
    "autograd.Function": lambda x, w: Product.apply(x, w),
    "functionalize": lambda x, w: torch.func.functionalize(lambda x: x @ w)(x),
}


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        return x @ w


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", HIGHER_ORDER)
def test_the_bodies_of_higher_order_operators_are_counted(name, mode):
    function, want = HIGHER_ORDER[name]
    net = Computes(function, reals(8, 8))
    with mode():
        plain, tally = net(X), count(net, X)
    assert tally.total().dense_ops == want and tally.uncounted == ()
    with mode(), OpCounter(net):
        torch.testing.assert_close(net(X), plain)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", APART)
def test_a_product_that_torch_keeps_apart_is_counted(name, mode):
    net = Computes(APART[name], reals(8, 8))
    with mode():
        plain, tally = net(X), count(net, X, strict=True)
        with OpCounter(net):
            torch.testing.assert_close(net(X), plain)
    total = tally.total()
    assert total.dense_ops == 256
    # three rows of spikes and one of numbers; as integers all are whole
    spiking = brute_force(X if name != "out_dtype" else 8 * X, reals(8, 8).t())
    assert operations(total) == (*spiking[:2], 256)


def exported(function):
    return torch.export.export(Computes(function, nn.Parameter(reals(8, 8))), (X,)).module()


def without_gradients(x, w):
    with torch.no_grad():
        return x @ w


GRAPHS = {
    "exported": lambda: exported(torch.matmul),
    "exported, in parts": lambda: (
        torch.export.export(Computes(torch.matmul, nn.Parameter(reals(8, 8))), (X,)).run_decompositions().module()
    ),
    "exported with a region": lambda: exported(without_gradients),
    "exported with a branch": lambda: exported(
        lambda x, w: torch.cond(x.sum() > 0, lambda x: x @ w, lambda x: x + 1, (x,))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_costs_what_it_was_written_as(name):
    tally = count(GRAPHS[name](), X, strict=True)
    assert operations(tally.total()) == operations(count(Computes(torch.matmul, nn.Parameter(reals(8, 8))), X).total())


@pytest.mark.slow
def test_flex_attention_costs_its_products():
    from torch.nn.attention.flex_attention import flex_attention

    q = reals(1, 2, 16, 16)
    assert count(Computes(lambda q: flex_attention(q, q, q)), q).total(kind="matmul").dense_ops == 2 * 2 * 16 * 16 * 16


# tensors of other kinds ---------------------------------------------------------------------------------------------


def sparse(layout):
    return nn.Parameter(torch.eye(8).to_sparse(layout=layout))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
def test_a_product_by_a_sparse_parameter_is_listed(layout):
    tally = count(Computes(lambda x, w: w @ x.t(), sparse(layout)), X)
    assert len(tally.uncounted) == 1
    assert (tally.footprint.parameters, tally.footprint.zero_parameters) == (64, 56)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_jagged_texts_cost_their_tokens():
    texts = torch.nested.nested_tensor([reals(2, 8), reals(4, 8)], layout=torch.jagged)
    net = nn.Linear(8, 4)
    tally = count(net, texts, strict=True)
    assert tally.total() == count(net, torch.cat([reals(2, 8), reals(4, 8)])).total()
    assert tally.tokens == {"prefill": 6}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_texts_are_listed():
    texts = torch.nested.nested_tensor([reals(2, 8), reals(4, 8)])
    tally = count(nn.Linear(8, 4), texts)
    assert tally.uncounted != () and tally.tokens == {"prefill": 6}


@pytest.mark.parametrize(
    "make", [lambda: nn.LazyLinear(4), lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 4))]
)
def test_lazy_modules_are_counted_from_their_first_call(make):
    torch.manual_seed(0)
    lazy = make()
    first = count(lazy, X, strict=True)
    assert first.total() == count(lazy, X).total()
    assert first.total().effective_acs > 0


# counters within counters -------------------------------------------------------------------------------------------


class CountsItself(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.layer, self.context = nn.Linear(8, 4), context

    def forward(self, x):
        with self.context(self.layer):
            return F.relu(self.layer(x))


@pytest.mark.parametrize(
    "context",
    [OpCounter, lambda layer: FlopCounterMode(display=False), lambda layer: OpCounter(layer, strict=True)],
    ids=["a counter", "torch's counter", "a strict one"],
)
def test_the_work_of_an_inner_counter_is_no_work_of_the_model(context):
    with_inner, plain = count(CountsItself(context), X), count(CountsItself(lambda layer: torch.no_grad()), X)
    assert with_inner.sites.keys() == plain.sites.keys()
    for site, counts in plain.sites.items():
        assert with_inner.sites[site].elementwise == counts.elementwise


def test_an_outer_counter_of_torch_sees_the_model_only():
    net = nn.Linear(8, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as outer:
        count(net, X)
    # torch counts a multiply-accumulate as two
    assert outer.get_total_flops() == 2 * 4 * 8 * 4


def test_a_tally_within_the_model_is_no_work_of_it():
    class Asks(nn.Linear):
        def forward(self, x):
            output = super().forward(x)
            self.counter.tally()
            return output

    net = Asks(8, 4)
    with torch.no_grad(), OpCounter(net) as counter:
        net.counter = counter
        net(X)
    assert counter.tally().total().elementwise == count(nn.Linear(8, 4), X).total().elementwise
