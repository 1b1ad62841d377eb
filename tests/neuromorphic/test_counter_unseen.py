"""What a dispatch mode cannot see is not seen, and the words say so; what it sees without a rule is listed."""

import ctypes
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from counting import Computes, count, reals
from torch import nn

from neuromorphic import OpCounter
from neuromorphic.count.counter import UncountedOperator

X = reals(4, 8)


def by_numpy(x, w):
    return torch.from_numpy(x.numpy() @ w.detach().numpy())


@numba.njit
def _product(x, w):
    return x @ w


def by_numba(x, w):
    return torch.from_numpy(_product(x.numpy(), w.detach().numpy()))


def by_lists(x, w):
    def times(row):
        return [sum(a * b for a, b in zip(row, column, strict=True)) for column in w.t().tolist()]

    return torch.tensor([times(row) for row in x.tolist()])


def by_items(x, w):
    return torch.tensor([[sum(x[i, k].item() * w[k, j].item() for k in range(8)) for j in range(8)] for i in range(4)])


def by_ctypes(x, w):
    product, result = np.ascontiguousarray(x.numpy() @ w.detach().numpy()), torch.empty(4, 8)
    ctypes.memmove(result.data_ptr(), product.ctypes.data, 4 * result.numel())
    return result


def in_a_thread(x, w):
    results = []
    thread = threading.Thread(target=lambda: results.append(x @ w.detach()))
    thread.start()
    thread.join()
    return results[0]


UNSEEN = {
    "NumPy": by_numpy,
    "numba": by_numba,
    "lists": by_lists,
    "items": by_items,
    "ctypes": by_ctypes,
    "another thread": in_a_thread,
}


# numba compiles
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "numba")) for name in UNSEEN])
def test_what_goes_past_torchs_operators_is_not_seen_and_strict_passes_it(name):
    torch.testing.assert_close(UNSEEN[name](X, nn.Parameter(reals(8, 8))), X @ reals(8, 8))
    # the product after it is counted as ever
    model = Computes(lambda x, w: UNSEEN[name](x, w) @ w, nn.Parameter(reals(8, 8)))
    tally = count(model, X, strict=True)
    assert (tally.total().dense_ops, tally.uncounted) == (4 * 64, ())


def test_the_words_say_what_is_not_seen():
    page = (Path(__file__).parents[2] / "docs" / "counting.md").read_text()
    said = next(line for line in page.splitlines() if line.startswith("- **Not seen**"))
    for word in ("NumPy", "numba", "lists", "other threads", "`strict`"):
        assert word in said
    assert "numpy" in OpCounter.__doc__ and "`strict` cannot refuse it" in OpCounter.__doc__


# operators of others, some of them by names that torch has too; they may do anything
LIBRARY = torch.library.Library("unseen", "FRAGMENT")
NAMESAKES = ("add", "mm", "relu", "clone", "cat", "sum", "sort", "embedding", "scatter", "native_layer_norm", "product")
for _name in NAMESAKES:
    LIBRARY.define(f"{_name}(Tensor x, Tensor w) -> Tensor")
    LIBRARY.impl(_name, lambda x, w: x @ w, "CPU")
LIBRARY.define("parts(Tensor x, Tensor w) -> Tensor")
LIBRARY.impl("parts", lambda x, w: x @ w, "CompositeImplicitAutograd")


@torch.library.custom_op("unseen::by_numpy", mutates_args=())
def operator_by_numpy(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return by_numpy(x, w)


@torch.library.custom_op("unseen::softplus", mutates_args=())
def operator_by_torch(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", [*NAMESAKES, "by_numpy", "softplus"])
def test_an_operator_of_others_is_listed_whatever_it_is_called(name, mode):
    model = Computes(getattr(torch.ops.unseen, name), nn.Parameter(reals(8, 8)))
    with mode():
        tally = count(model, X)
        assert [(item.operator, item.calls) for item in tally.uncounted] == [(f"unseen.{name}.default", 1)]
        assert not any(tally.total().elementwise.values()) and tally.total().dense_ops == 0
        with pytest.raises(UncountedOperator, match=f"unseen.{name}"):
            count(model, X, strict=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_operator_that_others_made_of_torchs_is_seen_in_its_parts(mode):
    with mode():
        tally = count(Computes(torch.ops.unseen.parts, nn.Parameter(reals(8, 8))), X, strict=True)
    assert tally.total().dense_ops == 4 * 64
