"""RWKV-7's WKV: the reference against stored float64 vectors (tests/golden), numba against the reference."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_cases import assert_all_close, cotangents_of
from tolerances import TOLERANCE

from spikegpt.kernels import wkv7
from spikegpt.kernels.wkv7.door import wkv7_operator

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = np.load(GOLDEN / "wkv7_a.npz")
CASES = list(json.loads((GOLDEN / "wkv7_a.json").read_text())["cases"])
NAMES = "r", "log_w", "k", "v", "a", "b", "S0"
SIZES = [(1, 1, 1, 1), (2, 1, 3, 5), (1, 17, 2, 8), (3, 37, 2, 12), (2, 130, 1, 33), (1, 33, 2, 64)]  # odd on purpose


def inputs_of(B, T, H, N, dtype=torch.float32):
    """Return [receptance, log_decay, key, value, a, b, state] as in a model: decays and keys are bounded."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + N)
    r, d, k, v, direction, rate = torch.randn(6, B, T, H, N, generator=generator)
    direction = torch.nn.functional.normalize(direction, dim=-1)
    log_decay = -math.exp(-0.5) * torch.sigmoid(3 * d)
    tensors = [x.to(dtype) for x in (r, k / math.sqrt(N), v, -direction, direction * torch.sigmoid(rate))]
    inputs = [tensors[0], log_decay, *tensors[1:], torch.randn(B, H, N, N, generator=generator)]
    return [x.requires_grad_() for x in inputs]


def everything(inputs, backend):
    """Return (output, state, seven gradients) under a fixed random cotangent."""
    results = wkv7(*inputs, backend=backend)
    return [*(x.detach() for x in results), *torch.autograd.grad(results, inputs, cotangents_of(results))]


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("auto", torch.float64, 1e-9), ("numba", torch.float32, 1e-4)]
)
@pytest.mark.parametrize("case", CASES)
def test_wkv7_is_the_authors(case, backend, dtype, tolerance):
    stored = {name: torch.from_numpy(STORED[f"{case}.{name}"]) for name in (*NAMES, "gy", "gST")}
    inputs = [stored[name].to(dtype).requires_grad_() for name in NAMES]
    results = wkv7(*inputs, backend=backend)
    grads = torch.autograd.grad(results, inputs, (stored["gy"].to(dtype), stored["gST"].to(dtype)))
    for name, found in zip(("y", "ST", *(f"g{name}" for name in NAMES)), (*results, *grads), strict=True):
        wanted = torch.from_numpy(STORED[f"{case}.{name}"])
        assert (found.double() - wanted).abs().max() <= tolerance * max(wanted.abs().max().item(), 1e-2), name


@pytest.mark.parametrize("size", SIZES)
def test_numba_matches_the_reference_at_every_size(size):
    inputs = inputs_of(*size)
    assert_all_close(everything(inputs, "numba"), everything(inputs, "reference"))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_numba_matches_the_reference_in_every_dtype(dtype):
    inputs = inputs_of(2, 37, 2, 12, dtype)
    assert_all_close(everything(inputs, "numba"), everything(inputs, "reference"), dtype)


def test_a_text_in_two_pieces_is_the_text():
    *inputs, state = inputs_of(2, 37, 2, 12)
    whole, last = wkv7(*inputs, state, backend="numba")
    first, carried = wkv7(*(x[:, :20] for x in inputs), state, backend="numba")
    second, end = wkv7(*(x[:, 20:] for x in inputs), carried, backend="numba")
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(end, last)


def test_threads_change_nothing():
    inputs = inputs_of(2, 130, 4, 33)
    alone = everything(inputs, "numba")
    torch.set_num_threads(2)
    assert all(map(torch.equal, everything(inputs, "numba"), alone))


def test_a_written_value_is_read_and_removed_again():
    # by hand: one head of two channels; write 3 along channel 0, then remove what is there
    r, w, k, v, a, b = torch.zeros(6, 1, 2, 1, 2)
    r[..., 0] = k[:, 0, :, 0] = 1.0
    v[:, 0, :, 1] = 3.0
    a[:, 1, :, 0], b[:, 1, :, 0] = -1.0, 1.0
    output, state = wkv7(r, w, k, v, a, b, backend="numba")
    assert output.flatten().tolist() == [0.0, 3.0, 0.0, 0.0]
    assert not state.any()


def test_operator_is_one_of_torch():
    torch.library.opcheck(wkv7_operator.definition, inputs_of(1, 5, 2, 4))


def test_cost_is_what_the_reference_does():
    output = wkv7_operator(*(inputs := inputs_of(2, 3, 2, 4)))
    cost = torch.ops.spikegpt.wkv7.default.op_cost(tuple(inputs), {}, output)
    # a token of a head of 4: (S a) 16 and 12, times b 16, decay 16, v k 16, two sums 32, (S r) 16 and 12
    heads = 2 * 3 * 2
    assert (cost["mul"], cost["add"], cost["exp"]) == (80 * heads, 56 * heads, 4 * heads)
    assert cost["state_elements"] == 2 * 16


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (0, lambda x: x[:, :, :1], "receptance is torch.float32"),
        (3, lambda x: x.double(), "value is torch.float64"),
        (6, lambda x: x[:, :, :2], "state is torch.float32"),
        (2, lambda x: x[0], "key must be floating point"),
    ],
)
def test_what_does_not_fit_is_named(place, change, words):
    inputs = inputs_of(2, 3, 2, 4)
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=words):
        wkv7(*inputs)
