"""What every WKV whose state is a matrix per head holds to: the authors' numbers, and its reference, in every way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from kernel_cases import assert_all_close, cotangents_of, wkv6_inputs, wkv7_inputs
from tolerances import TOLERANCE
from torch import Tensor

from spikegpt.kernels import wkv6, wkv7
from spikegpt.kernels.decay import log_decay_of
from spikegpt.kernels.wkv6.door import wkv6_operator
from spikegpt.kernels.wkv7.door import wkv7_operator

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = [(1, 1, 1, 1), (2, 1, 3, 5), (1, 17, 2, 8), (3, 37, 2, 12), (2, 130, 1, 33), (1, 33, 2, 64)]  # odd on purpose


def of_raw_decay(r: Tensor, time_decay: Tensor, *others: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The author's inputs of RWKV-5 and -6; RWKV-5's decay (H, N) is that of every token."""
    return wkv6(r, log_decay_of(time_decay).expand(r.shape), *others, backend=backend)


class Operation(NamedTuple):
    """An operation, how its inputs are drawn, and the author's: its names there, and what takes them."""

    call: Callable[..., tuple[Tensor, Tensor]]
    operator: Any
    inputs: Callable[..., list[Tensor]]
    names: tuple[str, ...]
    authors: Callable[..., tuple[Tensor, Tensor]]


OPERATIONS = {
    "wkv6": Operation(wkv6, wkv6_operator, wkv6_inputs, ("r", "w_raw", "k", "v", "u", "S0"), of_raw_decay),
    "wkv7": Operation(wkv7, wkv7_operator, wkv7_inputs, ("r", "log_w", "k", "v", "a", "b", "S0"), wkv7),
}
STORED = {name: np.load(GOLDEN / f"{name}_a.npz") for name in OPERATIONS}
CASES = [(name, case) for name in OPERATIONS for case in json.loads((GOLDEN / f"{name}_a.json").read_text())["cases"]]
every = pytest.mark.parametrize("name", OPERATIONS)


def everything(name, inputs, backend):
    """Return (output, state, a gradient of each input) under a fixed random cotangent."""
    results = OPERATIONS[name].call(*inputs, backend=backend)
    return [*(x.detach() for x in results), *torch.autograd.grad(results, inputs, cotangents_of(results))]


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("auto", torch.float64, 1e-9), ("numba", torch.float32, 1e-4)]
)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_it_is_the_authors(name, case, backend, dtype, tolerance):
    names, authors = OPERATIONS[name].names, OPERATIONS[name].authors
    stored = {part: torch.from_numpy(STORED[name][f"{case}.{part}"]) for part in (*names, "gy", "gST")}
    inputs = [stored[part].to(dtype).requires_grad_() for part in names]
    results = authors(*inputs, backend=backend)
    grads = torch.autograd.grad(results, inputs, (stored["gy"].to(dtype), stored["gST"].to(dtype)))
    for part, found in zip(("y", "ST", *(f"g{part}" for part in names)), (*results, *grads), strict=True):
        wanted = torch.from_numpy(STORED[name][f"{case}.{part}"])
        assert (found.double() - wanted).abs().max() <= tolerance * max(wanted.abs().max().item(), 1e-2), part


@every
@pytest.mark.parametrize("size", SIZES)
def test_numba_matches_the_reference_at_every_size(name, size):
    inputs = OPERATIONS[name].inputs(*size)
    assert_all_close(everything(name, inputs, "numba"), everything(name, inputs, "reference"))


@every
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_numba_matches_the_reference_in_every_dtype(name, dtype):
    inputs = OPERATIONS[name].inputs(2, 37, 2, 12, dtype)
    assert_all_close(everything(name, inputs, "numba"), everything(name, inputs, "reference"), dtype)


@every
def test_a_text_in_two_pieces_is_the_text(name):
    call = OPERATIONS[name].call
    *inputs, state = OPERATIONS[name].inputs(2, 37, 2, 12)

    def cut(tokens: slice) -> list[Tensor]:
        # what has no tokens is for all of them
        return [x[:, tokens] if x.dim() == 4 else x for x in inputs]

    whole, last = call(*inputs, state, backend="numba")
    first, carried = call(*cut(slice(20)), state, backend="numba")
    second, end = call(*cut(slice(20, None)), carried, backend="numba")
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(end, last)


@every
def test_threads_change_nothing(name):
    inputs = OPERATIONS[name].inputs(2, 130, 4, 33)
    alone = everything(name, inputs, "numba")
    torch.set_num_threads(2)
    assert all(map(torch.equal, everything(name, inputs, "numba"), alone))


@every
def test_operator_is_one_of_torch(name):
    torch.library.opcheck(OPERATIONS[name].operator.definition, OPERATIONS[name].inputs(1, 5, 2, 4))


@every
@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (0, lambda x: x[:, :, :1], "receptance is torch.float32"),
        (3, lambda x: x.double(), "value is torch.float64"),
        (-1, lambda x: x[:, :, :2], "state is torch.float32"),
        (2, lambda x: x[0], "key must be floating point"),
    ],
)
def test_what_does_not_fit_is_named(name, place, change, words):
    inputs = OPERATIONS[name].inputs(2, 3, 2, 4)
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=f"{name}: {words}"):
        OPERATIONS[name].call(*inputs)
