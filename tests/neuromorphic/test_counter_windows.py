"""Norms with statistics of the batch, pooling window by window, complex numbers, reductions that look like moves."""

import pytest
import torch
from counting import Computes, count, reals
from torch import nn
from torch.nn import functional as F


def done(tally):
    """The elementwise operations that are not 0."""
    assert tally.uncounted == ()
    return {name: number for name, number in tally.total().elementwise.items() if number}


# norms: n elements in r rows ----------------------------------------------------------------------------------------


def plain_norm(n, r):
    """sum, subtract, sum of squares; square, scale; eps, two quotients and a root for each row."""
    return {"add": 3 * n + r, "mul": 2 * n, "div": 2 * r, "rsqrt": r}


NORMS = {
    "instance": (nn.InstanceNorm2d(4), (2, 4, 6, 6), plain_norm(288, 8)),
    "instance over a line": (nn.InstanceNorm1d(4), (2, 4, 6), plain_norm(48, 8)),
    "layer without weights": (nn.LayerNorm(8, elementwise_affine=False), (3, 8), plain_norm(24, 3)),
    "group without weights": (nn.GroupNorm(2, 4, affine=False), (3, 4, 5), plain_norm(60, 6)),
    "batch without running statistics": (
        nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        (3, 4, 5),
        plain_norm(60, 4),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_without_weights_computes_its_statistics_and_no_more(name):
    layer, shape, want = NORMS[name]
    assert done(count(layer, reals(*shape))) == want


def test_weights_of_a_norm_are_one_product_and_one_sum_for_each_element():
    want = plain_norm(288, 8)
    assert done(count(nn.InstanceNorm2d(4, affine=True), reals(2, 4, 6, 6))) == {
        **want,
        "add": want["add"] + 288,
        "mul": want["mul"] + 288,
    }


def test_layer_norm_without_bias_adds_none():
    assert done(count(nn.LayerNorm(8, bias=False), reals(3, 8)))["add"] == 3 * 24 + 3


def test_rms_norm_multiplies_by_the_weight_that_it_has():
    with_weight, without = (done(count(nn.RMSNorm(8, elementwise_affine=own), reals(3, 8))) for own in (True, False))
    assert without == {"add": 24 + 3, "mul": 48, "div": 3, "rsqrt": 3}
    assert with_weight == {**without, "mul": 72}


def test_a_batch_norm_in_training_keeps_running_statistics():
    # for each channel: mean = a mean + b new; var = a var + b new n / (n - 1)
    want = plain_norm(60, 4)
    assert done(count(nn.BatchNorm1d(4, affine=False), reals(3, 4, 5))) == {
        **want,
        "add": want["add"] + 2 * 4,
        "mul": want["mul"] + 4 * 4,
        "div": want["div"] + 4,
    }


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_of_a_deployment_is_folded(affine):
    assert done(count(nn.BatchNorm1d(4, affine=affine).eval(), reals(3, 4, 5))) == {"add": 60, "mul": 60}


# pooling ------------------------------------------------------------------------------------------------------------

POOLS = {
    "max": (nn.MaxPool2d(3, 1), (1, 2, 9, 9), {"compare": 2 * 49 * 9}),
    "average": (nn.AvgPool2d(3, 1), (1, 2, 9, 9), {"add": 2 * 49 * 9, "div": 2 * 49}),
    # 16 windows along each side: the first meets 2 inputs, 15 meet 3
    "max of ResNet-18": (nn.MaxPool2d(3, 2, 1), (1, 64, 32, 32), {"compare": 64 * 47 * 47}),
    "max along a line": (nn.MaxPool1d(3, 1), (1, 2, 9), {"compare": 2 * 7 * 3}),
    "max of a volume": (nn.MaxPool3d(2), (1, 1, 4, 4, 4), {"compare": 64}),
    "average of a volume": (nn.AvgPool3d(2, 1), (1, 1, 3, 3, 3), {"add": 64, "div": 8}),
    "average along a line, padded": (nn.AvgPool1d(3, 1, 1), (1, 1, 4), {"add": 2 + 3 + 3 + 2, "div": 4}),
    "max, dilated": (nn.MaxPool1d(2, 1, dilation=3), (1, 1, 6), {"compare": 3 * 2}),
    # windows 0 1 | 2 3 | 4: the last is cut off
    "max, ceiling": (nn.MaxPool1d(2, ceil_mode=True), (1, 1, 5), {"compare": 5}),
    # windows from floor(o 5 / 3) to ceil((o + 1) 5 / 3): 0 1 | 1 2 3 | 3 4
    "adaptive average": (nn.AdaptiveAvgPool1d(3), (1, 1, 5), {"add": 7, "div": 3}),
    "adaptive max": (nn.AdaptiveMaxPool2d((3, 1)), (1, 1, 5, 2), {"compare": 7 * 2}),
    "global average": (nn.AdaptiveAvgPool2d(1), (1, 3, 4, 4), {"add": 48, "div": 3}),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", POOLS)
def test_a_pooling_costs_what_its_windows_meet(name, mode):
    layer, shape, want = POOLS[name]
    with mode():
        assert done(count(layer, reals(*shape))) == want


# complex numbers ----------------------------------------------------------------------------------------------------


def waves(*shape, seed=0):
    return torch.complex(reals(*shape, seed=seed), reals(*shape, seed=seed + 1))


COMPLEX = {
    "product": (lambda a: a * a, {"mul": 192, "add": 96}),
    "sum": (lambda a: a + a, {"add": 96}),
    "product by a real number": (lambda a: a * 0.5, {"mul": 96}),
    "product by real numbers": (lambda a: a * a.real, {"mul": 96}),
    "quotient": (lambda a: a / a, {"mul": 6 * 48, "add": 3 * 48, "div": 96}),
    "size": (lambda a: a.abs(), {"mul": 96, "add": 48, "sqrt": 48}),
    "sum of all": (lambda a: a.sum(), {"add": 96}),
    "turned by phases": (
        lambda a: torch.polar(torch.ones(48), torch.zeros(48)) * a,
        {"trigonometric": 96, "mul": 96 + 192, "add": 96},
    ),
    "exponential": (lambda a: a.exp(), {"exp": 48, "trigonometric": 96, "mul": 96}),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_cost_real_operations(name):
    function, want = COMPLEX[name]
    assert done(count(Computes(function), waves(48))) == want


def test_a_function_of_complex_numbers_without_a_rule_is_listed():
    assert [entry.operator for entry in count(Computes(torch.tanh), waves(48)).uncounted] == ["aten.tanh.default"]


@pytest.mark.parametrize("is_weight", [True, False])
def test_a_complex_matrix_product_is_four_real_ones(is_weight):
    x, w = waves(2, 8), waves(8, 8, seed=3)
    model = Computes(torch.matmul, *([nn.Parameter(w)] if is_weight else []))
    total = count(model, x, *([] if is_weight else [w])).total()
    assert total.dense_ops == total.effective_macs == 4 * 2 * 8 * 8
    assert total.weights_once == (2 * 64 if is_weight else 0)


def test_zero_parts_of_complex_numbers_multiply_nothing():
    x, w = waves(2, 8), waves(8, 8, seed=3)
    x.imag[:, 4:] = 0
    total = count(Computes(torch.matmul, nn.Parameter(w)), x).total()
    # each of the 2 x 12 parts that are left meets both parts of 8 weights
    assert (total.dense_ops, total.effective_macs) == (512, 24 * 16)


# reductions that look like moves ------------------------------------------------------------------------------------

IDS = torch.tensor([[0, 1], [3, 0], [2, 2]])
REDUCTIONS = {
    "scatter, add": (lambda x, y: x.scatter(0, IDS, y, reduce="add"), {"add": 6}),
    "scatter, multiply": (lambda x, y: x.scatter(0, IDS, y, reduce="multiply"), {"mul": 6}),
    "scatter_add": (lambda x, y: x.scatter_add(0, IDS, y), {"add": 6}),
    "scatter_reduce, amax": (lambda x, y: x.scatter_reduce(0, IDS, y, "amax"), {"compare": 6}),
    "scatter_reduce, mean": (lambda x, y: x.scatter_reduce(0, IDS, y, "mean"), {"add": 6, "div": 8}),
    "index_put_, accumulate": (lambda x, y: x.index_put_((IDS[:, 0],), y, accumulate=True), {"add": 6}),
    "index_put_, one number": (
        lambda x, y: x.index_put_((IDS[:, 0],), torch.tensor(1.0), accumulate=True),
        {"add": 6},
    ),
    "index_add": (lambda x, y: x.index_add(0, IDS[:, 0], y), {"add": 6}),
    "index_add, scaled": (lambda x, y: x.index_add(0, IDS[:, 0], y, alpha=2), {"add": 6, "mul": 6}),
    "index_reduce": (lambda x, y: x.index_reduce(0, IDS[:, 0], y, "prod"), {"mul": 6}),
    "put_, accumulate": (lambda x, y: x.put_(IDS, y, accumulate=True), {"add": 6}),
    "fold": (lambda x, y: F.fold(y.reshape(1, 2, 3), (4, 1), (2, 1)), {"add": 6}),
    "bincount": (lambda x, y: torch.bincount(IDS.flatten()), {"add": 6}),
    "aminmax": (lambda x, y: torch.aminmax(x), {"compare": 16}),
    "cummax": (lambda x, y: x.cummax(0), {"compare": 8}),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_what_is_added_or_compared_on_its_way_is_counted(name):
    function, want = REDUCTIONS[name]
    assert done(count(Computes(function), reals(4, 2), reals(3, 2), strict=True)) == want


MOVES = {
    "scatter": lambda x: x.scatter(0, IDS, x[1:]),
    "index_put": lambda x: x.index_put((IDS[:, 0],), x[1:]),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(1, 4, 2, 1), 2),
    "as_strided_": lambda x: x.clone().as_strided_((2, 2), (1, 1)),
    "reflection_pad": lambda x: F.pad(x[None], (1, 1), mode="reflect"),
    "replication_pad": lambda x: F.pad(x[None], (1, 1), mode="replicate"),
    "upsample": lambda x: F.interpolate(x[None], scale_factor=2),
    "unfold": lambda x: F.unfold(x[None, None], (2, 2)),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_move_computes_nothing_and_is_known(name):
    assert done(count(Computes(MOVES[name]), reals(4, 2), strict=True)) == {}


# n = 12 elements in 3 rows of 4
RULES = {
    "topk": (lambda x: x.topk(2).values, {"compare": 12}),
    "sort": (lambda x: x.sort().values, {"compare": 12 * 2}),
    "log_sigmoid": (F.logsigmoid, {"compare": 24, "add": 24, "exp": 12, "log": 12}),
    "glu": (F.glu, {"sigmoid": 6, "mul": 6}),
    "logsumexp": (lambda x: x.logsumexp(1), {"compare": 12, "add": 24 + 3, "exp": 12, "log": 3}),
    "norm of ones": (lambda x: torch.linalg.vector_norm(x, 1), {"compare": 12, "add": 12}),
    "largest": (lambda x: torch.linalg.vector_norm(x, float("inf")), {"compare": 24}),
    "distances": (lambda x: torch.cdist(x[:2], x[2:]), {"add": 2 * 8, "mul": 8, "sqrt": 2}),
}


@pytest.mark.parametrize("name", RULES)
def test_common_functions_have_a_rule(name):
    function, want = RULES[name]
    assert done(count(Computes(function), reals(3, 4), strict=True)) == want


def test_a_mixture_of_experts_costs_the_products_of_its_groups():
    # experts of 4 x 3 for 2, 0 and 3 tokens
    experts = Computes(
        lambda x, w: torch._grouped_mm(x, w, offs=torch.tensor([2, 2, 5], dtype=torch.int32)),
        nn.Parameter(reals(3, 8, 8).bfloat16()),
    )
    total = count(experts, reals(5, 8).bfloat16(), strict=True).total()
    assert total.dense_ops == total.effective_macs == 5 * 8 * 8
    assert total.weights_once == 2 * 64
