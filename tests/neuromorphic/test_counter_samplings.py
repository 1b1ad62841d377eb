"""Samplings at places that data choose, numbers that are drawn, losses, tensors with no elements, worked by hand."""

import pytest
import torch
from counting import Computes, count, reals, spikes
from torch import nn
from torch.nn import functional as F


def done(tally):
    return {name: number for name, number in tally.total().elementwise.items() if number}


# samplings: 2 texts of 3 channels, 5 x 4 places of the grid, so 2 * 20 places and 2 * 20 * 3 results ----------------

GRID = reals(2, 5, 4, 2) - 0.5
PLACES, RESULTS = 2 * 20, 2 * 20 * 3
# each of 2 coordinates of a place is scaled, shifted and rounded; of each neighbour one asks if it is inside
SAMPLINGS = {
    # two distances for each coordinate; a weight for each of 4 corners; 4 products and 3 sums
    "bilinear": ({}, {"mul": PLACES * (2 + 4) + 4 * RESULTS, "add": PLACES * (2 + 4) + 3 * RESULTS}, PLACES * (2 + 8)),
    "bilinear, to the corners": (
        {"align_corners": True},
        {"mul": PLACES * (2 + 4) + 4 * RESULTS, "add": PLACES * (2 + 4) + 3 * RESULTS},
        PLACES * (2 + 8),
    ),
    "bilinear, held at the border": (
        {"padding_mode": "border"},
        {"mul": PLACES * (2 + 4) + 4 * RESULTS, "add": PLACES * (2 + 4) + 3 * RESULTS},
        PLACES * (2 + 4),
    ),
    "nearest": ({"mode": "nearest"}, {"mul": PLACES * 2, "add": PLACES * 2}, PLACES * (2 + 4)),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_an_image_is_sampled_at_the_places_of_a_grid(name):
    options, want, comparisons = SAMPLINGS[name]
    sampled = Computes(lambda x, grid: F.grid_sample(x, grid, **{"align_corners": False, **options}))
    assert done(count(sampled, reals(2, 3, 6, 7), GRID, strict=True)) == {**want, "compare": comparisons}


def test_a_volume_has_eight_corners():
    sampled = Computes(lambda x, grid: F.grid_sample(x, grid, align_corners=False))
    found = done(count(sampled, reals(1, 2, 3, 3, 3), reals(1, 1, 1, 4, 3), strict=True))
    # 4 places of 3 coordinates, 2 channels; a weight is a product of 3 distances
    assert found == {
        "mul": 4 * (3 + 8 * 2) + 4 * 2 * 8,
        "add": 4 * (3 + 6) + 4 * 2 * 7,
        "compare": 4 * 3 * (1 + 4),
    }


@pytest.mark.parametrize("options", [{"mode": "bicubic"}, {"padding_mode": "reflection"}])
def test_what_else_a_sampling_may_do_is_listed(options):
    sampled = Computes(lambda x, grid: F.grid_sample(x, grid, align_corners=False, **options))
    (listed,) = count(sampled, reals(2, 3, 6, 7), GRID).uncounted
    assert (listed.operator, listed.calls) == ("aten.grid_sampler_2d.default", 1)


@pytest.mark.parametrize(("matrix", "size"), [((2, 2, 3), (2, 3, 5, 4)), ((1, 3, 4), (1, 2, 2, 3, 4))])
def test_an_affine_grid_is_a_matrix_times_each_place(matrix, size):
    places, dimensions = size[0] * torch.Size(size[2:]).numel(), len(size) - 2
    found = done(count(Computes(lambda m: F.affine_grid(m, size, align_corners=False)), reals(*matrix), strict=True))
    assert found == dict.fromkeys(("mul", "add"), places * dimensions**2)


@pytest.mark.parametrize(("boundaries", "comparisons"), [(1, 1), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_a_number_is_searched_by_halves(boundaries, comparisons):
    table = torch.arange(float(boundaries))
    for search in (lambda x: torch.bucketize(x, table), lambda x: torch.searchsorted(table, x)):
        assert done(count(Computes(search), reals(3, 4), strict=True)) == {"compare": 12 * comparisons}


# what is drawn ------------------------------------------------------------------------------------------------------

DRAWN = {
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 3),
    "rand": lambda x: torch.rand(3, 4),
    "uniform_": lambda x: torch.empty(3, 4).uniform_(-1, 1),
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "random_": lambda x: torch.empty(3, 4).random_(0, 5),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_draw_computes_nothing_and_reads_nothing(name):
    total = count(Computes(DRAWN[name]), reals(3, 4), strict=True).total()
    assert not any(total.elementwise.values())
    assert (total.activation_reads, total.activation_writes) == (0, 12)


MASKS = {
    "stochastic depth": (lambda x: x * x.new_empty(3, 1).bernoulli_(0.5), {"compare": 3, "mul": 12}),
    "feature dropout": (lambda x: F.dropout1d(x, 0.5, True), {"compare": 3, "div": 3, "mul": 12}),
    "probabilities": (torch.bernoulli, {"compare": 12}),
    "means": (lambda x: torch.normal(x, 1.0), {"add": 12}),
    "means and deviations": (lambda x: torch.normal(x, x), {"add": 12, "mul": 12}),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_done_with_a_draw_is_counted(name):
    function, want = MASKS[name]
    assert done(count(Computes(function), reals(3, 4).clamp(max=1), strict=True)) == want


# x (5, 8) times w (8, 6): made anew in each pass of weights and draws, so its making is work
DRAWN_WEIGHTS = {
    "Bayesian": (lambda x, w: x @ (w + w.exp() * torch.randn_like(w)), {"mul": 48, "add": 48}),
    "dropped weights": (lambda x, w: x @ F.dropout(w, 0.5, True), {"compare": 48, "mul": 48, "div": 48}),
    "noisy": (lambda x, w: x @ (w + torch.empty_like(w).normal_()), {"add": 48}),
    "noise in a buffer": (lambda x, w, noise: x @ (w + w.exp() * noise.normal_()), {"mul": 48, "add": 48}),
    "dropped in training only": (lambda x, w: x @ F.dropout(w, 0.5, False), {}),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", DRAWN_WEIGHTS)
def test_a_weight_that_is_drawn_anew_is_a_weight_whose_making_is_work(name, mode):
    function, want = DRAWN_WEIGHTS[name]
    # four rows of spikes accumulate, the real one multiplies
    x = torch.cat([spikes(4, 8), reals(1, 8)])
    with mode():
        buffers = (torch.zeros(8, 6),) if "buffer" in name else ()
        tally = count(Computes(function, nn.Parameter(reals(8, 6)), buffers=buffers), x, strict=True)
    assert done(tally) == want
    total = tally.total()
    assert total.dense_ops == 240 and 0 < total.effective_macs <= 48 and total.effective_acs > 0
    assert total.weights_per_event > 0


# losses that models compute of their labels -------------------------------------------------------------------------

LABELS = torch.tensor([1, 0, 3])
LOG_SOFTMAX = {"compare": 12, "add": 36, "exp": 12, "log": 3}
OF_LOGITS = {"compare": 24, "add": 48, "mul": 12, "exp": 12, "log": 12}
LOSSES = {
    "cross entropy": (lambda x: F.cross_entropy(x, LABELS), LOG_SOFTMAX | {"compare": 15, "add": 42, "div": 1}),
    "sum": (
        lambda x: F.cross_entropy(x, LABELS, reduction="sum"),
        LOG_SOFTMAX | {"compare": 15, "add": 42},
    ),
    "of each": (lambda x: F.nll_loss(x, LABELS, reduction="none"), {"compare": 3, "add": 3}),
    "of pixels": (lambda x: F.nll_loss(x[..., None, None], LABELS[:, None, None]), {"compare": 3, "add": 6, "div": 1}),
    "logits": (
        lambda x: F.binary_cross_entropy_with_logits(x, x),
        OF_LOGITS | {"add": 60, "div": 1},
    ),
    "logits, of each": (lambda x: F.binary_cross_entropy_with_logits(x, x, reduction="none"), OF_LOGITS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_cost_their_definition(name):
    function, want = LOSSES[name]
    assert done(count(Computes(function), reals(3, 4), strict=True)) == want


def test_weighted_losses_are_listed():
    weighted = Computes(lambda x: F.cross_entropy(x, LABELS, weight=torch.ones(4)))
    assert [item.operator for item in count(weighted, reals(3, 4)).uncounted] == ["aten.nll_loss_forward.default"]


ELEMENTWISE = {
    "nan_to_num": (torch.nan_to_num, {"compare": 36, "select": 36}),
    "copysign": (lambda x: torch.copysign(x, -x), {"compare": 12, "add": 12}),
    "cross": (lambda x: torch.linalg.cross(x[:, :3], x[:, 1:]), {"mul": 18, "add": 9}),
    "logaddexp": (lambda x: torch.logaddexp(x, x), {"compare": 24, "add": 36, "exp": 12, "log": 12}),
    "fake quantised": (
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -8, 7),
        {"mul": 24, "add": 24, "compare": 36},
    ),
    "fake quantised by channel": (
        lambda x: torch.fake_quantize_per_channel_affine(x, torch.ones(4), torch.zeros(4).int(), 1, -8, 7),
        {"mul": 24, "add": 24, "compare": 36},
    ),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_of_vision_and_geometry_have_a_rule(name):
    function, want = ELEMENTWISE[name]
    assert done(count(Computes(function), reals(3, 4), strict=True)) == want


# nothing at all -----------------------------------------------------------------------------------------------------

EMPTY = {
    "convolution": (nn.Conv2d(3, 4, 3), (0, 3, 8, 8)),
    "transposed convolution": (nn.ConvTranspose1d(3, 4, 3), (0, 3, 8)),
    "linear": (nn.Linear(8, 4), (0, 8)),
    "LSTM": (nn.LSTM(8, 4, batch_first=True), (0, 5, 8)),
    "attention": (Computes(lambda x: F.scaled_dot_product_attention(x, x, x)), (0, 2, 5, 4)),
    "pooling": (nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), (0, 2, 6, 6)),
    "spikes": (nn.Sequential(Computes(lambda x: (x > 0.5).float()), nn.Linear(8, 3)), (0, 8)),
    "sampling": (Computes(lambda x: F.grid_sample(x, torch.zeros(0, 4, 4, 2), align_corners=False)), (0, 3, 4, 4)),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", EMPTY)
def test_no_texts_cost_no_products(name, mode):
    model, shape = EMPTY[name]
    with mode():
        tally = count(model, torch.zeros(shape), strict=True)
    total = tally.total()
    assert (total.dense_ops, total.effective_ops, total.weights_per_event, total.neuron_updates) == (0, 0, 0, 0)
