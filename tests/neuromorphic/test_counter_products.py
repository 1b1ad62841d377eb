"""Matrix products, convolutions and causal attention, against a count of single products."""

import itertools

import pytest
import torch
from counting import LEVELS, brute_force, count, linear, random_case
from torch import nn
from torch.nn import functional as F

from neuromorphic import OpCounter

HALVES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alphabet", LEVELS)
def test_a_matrix_product_equals_a_count_of_single_products(alphabet, seed):
    x, weight = random_case(seed, LEVELS[alphabet])
    counts = count(linear(weight), x).total()
    assert (counts.effective_macs, counts.effective_acs, counts.unit_acs) == brute_force(x, weight)
    assert counts.dense_ops == 7 * 5 * 3
    assert counts.alphabet == alphabet
    assert counts.nonzeros == int((x != 0).sum())
    assert counts.is_spike_driven == (alphabet != "real")


def test_every_row_has_its_own_alphabet():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [2.0, 0.0], [0.5, 1.0]])
    counts = count(linear(torch.full((3, 2), 0.5)), x).total()
    elements = (
        counts.zero_elements,
        counts.binary_elements,
        counts.ternary_elements,
        counts.integer_elements,
        counts.real_elements,
    )
    assert elements == (2, 2, 2, 2, 2)
    # 1 and 2 spikes by 3 weights; one integer and two reals by 3 weights; the integer is worth 2 unit spikes
    assert (counts.effective_acs, counts.effective_macs, counts.integer_macs, counts.unit_acs) == (9, 9, 3, 6)
    assert (counts.events_in, counts.largest_level, counts.fan_out, counts.alphabet) == (4, 2, 3, "real")


def test_ternary_weights_make_accumulations_of_real_inputs_and_say_so():
    x, _ = random_case(0, None)
    weight = torch.tensor([[1.0, 0.0, -1.0, 0.0, 1.0]])
    counts = count(linear(weight), x).total()
    assert counts.effective_macs == 0
    assert counts.effective_acs == counts.weight_side_acs == int((x[:, [0, 2, 4]] != 0).sum())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("alphabet", LEVELS)
def test_counts_do_not_depend_on_the_number_format(alphabet, dtype):
    x, weight = random_case(1, LEVELS[alphabet], n=33, k=65, m=31)
    exact = count(linear(weight), x).total()
    assert count(linear(weight).to(dtype), x.to(dtype)).total() == exact


def test_counts_beyond_the_largest_half_precision_number_stay_exact():
    x = torch.ones(64, 768, dtype=torch.float16)
    layer = nn.Linear(768, 3072, bias=False).half()
    layer.weight.data.fill_(0.5)
    assert count(layer, x).total().effective_acs == 64 * 768 * 3072


FORMS = [
    "mm from the right",
    "mm from the left",
    "bmm with one weight",
    "bmm",
    "einsum",
    "mv",
    "dot",
    "addmm",
    "functional",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_product_by_a_weight_is_seen(form):
    x, weight = random_case(2, LEVELS["binary"])
    forms = {
        "mm from the right": lambda w: x @ w.t(),
        "mm from the left": lambda w: w @ x.t(),
        "bmm with one weight": lambda w: torch.bmm(x.unsqueeze(0).expand(2, 7, 5), w.t().unsqueeze(0).expand(2, 5, 3)),
        "bmm": lambda w: torch.bmm(torch.stack([x, x]), torch.stack([w.t(), w.t()])),
        "einsum": lambda w: torch.einsum("nk,mk->nm", x, w),
        "mv": lambda w: w @ x[1],
        "dot": lambda w: x[1] @ w[0],
        "addmm": lambda w: torch.addmm(torch.zeros(3), x, w.t()),
        "functional": lambda w: F.linear(x, w),
    }
    want = {"mv": (x[1:2], weight), "dot": (x[1:2], weight[:1])}.get(form, (x, weight))
    twice = 2 if form.startswith("bmm") else 1

    class Form(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(weight.clone())

        def forward(self, _):
            return forms[form](self.weight)

    counts = count(Form(), torch.zeros(1)).total()
    macs, acs, _ = brute_force(*want)
    assert (counts.effective_macs, counts.effective_acs) == (twice * macs, twice * acs)
    assert counts.dense_ops == twice * want[0].numel() * len(want[1])


def test_a_product_of_two_activations_counts_pairs_of_nonzeros():
    class Product(nn.Module):
        def forward(self, a, b):
            return a @ b

    a, b = random_case(0, None)[0].unsqueeze(0), random_case(1, LEVELS["binary"], n=5, k=4)[0].unsqueeze(0)
    brute = sum(a[0, n, k] != 0 and b[0, k, m] != 0 for n, k, m in itertools.product(range(7), range(5), range(4)))
    counts = count(Product(), a, b).total()
    assert (counts.effective_macs, counts.effective_acs, counts.dense_ops) == (0, int(brute), 7 * 5 * 4)
    assert count(Product(), a, b + 0.5).total().effective_macs == int((a != 0).sum()) * 4


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"groups": 2, "padding": (1, 0)}]
)
def test_a_convolution_equals_a_count_of_single_products(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, bias=False, **options)
    layer.weight.data *= torch.rand_like(layer.weight) < 0.6
    x = (torch.rand(2, 4, 7, 6) < 0.4).float()
    counts = count(layer, x).total()
    # float64 sums of zeros and ones are exact; a padded border is no input
    nonzero = nn.Conv2d(4, 6, 3, bias=False, **options).double()
    nonzero.weight.data = (layer.weight != 0).double()
    assert (counts.effective_acs, counts.effective_macs) == (int(nonzero(x.double()).sum().item()), 0)
    nonzero.weight.data.fill_(1)
    assert counts.dense_ops == int(nonzero(torch.ones_like(x).double()).sum().item())
    assert count(layer, x + 0.5).total().effective_macs > counts.effective_acs


def test_a_transposed_convolution_is_counted():
    layer = nn.ConvTranspose1d(2, 3, 2, stride=2, bias=False)
    counts = count(layer, torch.ones(1, 2, 5)).total()
    assert counts.dense_ops == counts.effective_acs == 2 * 5 * 3 * 2


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_counts_the_pairs_that_are_visible(is_causal):
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 4) * (torch.rand(1, 2, 5, 4) < 0.7) for _ in range(3))
    counts = count(Attention(), q, k, v).total()
    visible = [(i, j) for i in range(5) for j in range(5) if j <= i or not is_causal]
    brute = sum(
        int(((q[0, h, i] != 0) & (k[0, h, j] != 0)).sum() + (v[0, h, j] != 0).sum())
        for h in range(2)
        for i, j in visible
    )
    assert counts.effective_macs == brute
    assert counts.dense_ops == 2 * len(visible) * 8
    assert counts.exp == counts.div == 2 * len(visible)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
@pytest.mark.parametrize("alphabet", LEVELS)
def test_one_row_costs_what_it_costs_among_others(alphabet, dtype):
    x, weight = random_case(3, LEVELS[alphabet])
    layer = linear(weight).to(dtype)
    layer.bias = None
    x = torch.cat([x, torch.zeros(1, 5), torch.full((1, 5), torch.nan)]).to(dtype)
    with torch.no_grad(), OpCounter(layer) as counter:
        for row in x:
            layer(row.unsqueeze(0))
    want, found = count(layer, x).total().to_dict(), counter.tally().total().to_dict()
    assert found | {"calls": 1} == want
