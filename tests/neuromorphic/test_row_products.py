"""Rows that leave a mark one call after another cost what `products.matrix_product` says of all of them at once."""

import pytest
import torch

from neuromorphic.count import products
from neuromorphic.count.counts import Counts, Site
from neuromorphic.count.marks import FEW, SMALL, Marks
from neuromorphic.count.row_products import RowProducts

SITE = Site("layer", "mm", "decode")


def rows_of(kind, N, K):
    draw = torch.Generator().manual_seed(N * K)
    kept = torch.rand(N, K, generator=draw) < 0.6
    values = {
        "real": torch.randn(N, K, generator=draw),
        "binary": torch.ones(N, K),
        "ternary": torch.randint(-1, 2, (N, K), generator=draw).float(),
        "integer": torch.randint(-127, 128, (N, K), generator=draw).float(),
        "too large": torch.randint(-128, 129, (N, K), generator=draw).float(),
        "zero": torch.zeros(N, K),
        "minus zero": -torch.zeros(N, K),
    }
    if kind in values:
        return values[kind] * kept
    if kind == "late fraction":
        x = torch.ones(N, K)
        x[N // 2, -1] = 0.5
        return x
    if kind == "not a number":
        x = kept.float()
        x[0, -1], x[-1, 0] = torch.nan, torch.inf
        return x
    return torch.cat([values[name][n % N : n % N + 1] for n in range(N) for name in list(values)[n % 7 : n % 7 + 1]])


KINDS = [
    *("real", "binary", "ternary", "integer", "too large", "zero", "minus zero"),
    *("late fraction", "not a number", "mixed"),
]
WEIGHTS = {
    "real": lambda K, M: torch.randn(K, M),
    "with zeros": lambda K, M: torch.randn(K, M) * (torch.rand(K, M) < 0.5),
    "ternary": lambda K, M: torch.randint(-1, 2, (K, M)).float(),
}


def cost_of(parts, weight):
    w = weight.unsqueeze(0)
    rows = RowProducts(SITE, w, products.describe_weight(w))
    for part in parts:
        rows.add(part)
    return rows.counts(), rows.touched()


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 5), (300, 33), (SMALL // 50 + 1, 50)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_definition(kind, shape, weight):
    N, K = shape
    torch.manual_seed(1)
    x, w = rows_of(kind, N, K), WEIGHTS[weight](K, 3)
    wanted = products.matrix_product(x.unsqueeze(0), products.describe_weight(w.unsqueeze(0)))
    for parts in ([x], [x[: N // 3], x[N // 3 :]] if N >= 3 else [x]):
        counts, touched = cost_of([part for part in parts if len(part)], w)
        assert vars(counts) == vars(wanted.counts) | {"calls": len(parts)}
        assert torch.equal(touched, wanted.touched)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["real", "integer", "mixed"])
def test_every_format_is_counted_as_it_is(kind, dtype):
    x, w = rows_of(kind, 9, 7).to(dtype), torch.randn(7, 3).to(dtype)
    wanted = products.matrix_product(x.unsqueeze(0), products.describe_weight(w.unsqueeze(0)))
    assert vars(cost_of([x], w)[0]) == vars(wanted.counts)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_pieces_leave_the_marks_of_single_rows(kind, threads):
    """With gaps between them, from the right, and in as many pieces as threads ask for."""
    whole, before = rows_of(kind, SMALL // 40 + 3, 81), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (whole[:, 1:42].numpy(), whole[: FEW + 1].mT.numpy()):
            together, apart = Marks(rows.shape[1]), Marks(rows.shape[1])
            together.add_rows(rows)
            for row in rows:
                apart.add_row(row)
            assert together.largest_level == apart.largest_level
            for name in ("rows", "fired", "levels"):
                assert (getattr(together, name) == getattr(apart, name)).all()
    finally:
        torch.set_num_threads(before)


def test_rows_one_by_one_cost_what_they_cost_together():
    x, w = rows_of("mixed", 60, 11), torch.randn(11, 4)
    together, apart = cost_of([x], w)[0], cost_of(list(x), w)[0]
    assert vars(apart) == vars(together) | {"calls": 60}


def test_two_rows_by_hand():
    """(1, 0, 1) and (0, 3, 0.5) meet 2 weights per input: 4 ACs, then 4 MACs; 3 distinct inputs are needed."""
    counts, touched = cost_of([torch.tensor([[1.0, 0, 1]]), torch.tensor([[0, 3, 0.5]])], torch.ones(3, 2) / 3)
    assert counts == Counts(
        calls=2,
        dense_ops=12,
        effective_acs=4,
        effective_macs=4,
        binary_elements=3,
        real_elements=3,
        nonzeros=4,
        events_in=2,
        fan_out=2,
        weights_per_event=8,
        weights_dense=12,
        activation_reads=6,
        activation_writes=4,
    )
    assert touched.all()
