"""The WKV of RWKV-5 and -6: its reference against stored float64 vectors (tests/golden), numba against that."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_cases import assert_all_close, cotangents_of
from tolerances import TOLERANCE

from spikegpt.kernels import wkv6
from spikegpt.kernels.decay import log_decay_of
from spikegpt.kernels.wkv6.door import wkv6_operator

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = np.load(GOLDEN / "wkv6_a.npz")
CASES = list(json.loads((GOLDEN / "wkv6_a.json").read_text())["cases"])
NAMES = "r", "w_raw", "k", "v", "u", "S0"
LOG_DECAY = 1
SIZES = [(1, 1, 1, 1), (2, 1, 3, 5), (1, 17, 2, 8), (3, 37, 2, 12), (2, 130, 1, 33), (1, 33, 2, 64)]  # odd on purpose


def inputs_of(B, T, H, N, dtype=torch.float32):
    """Return [receptance, log_decay, key, value, time_first, state]."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + N)
    r, d, k, v = torch.randn(4, B, T, H, N, generator=generator)
    u, state = torch.randn(H, N, generator=generator), torch.randn(B, H, N, N, generator=generator)
    r, k, v = (x.to(dtype) for x in (r, k / math.sqrt(N), v))
    return [x.requires_grad_() for x in (r, -torch.exp(2 * d - 1), k, v, u, state)]


def everything(inputs, backend):
    """Return (output, state, six gradients) under a fixed random cotangent."""
    results = wkv6(*inputs, backend=backend)
    return [*(x.detach() for x in results), *torch.autograd.grad(results, inputs, cotangents_of(results))]


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("auto", torch.float64, 1e-9), ("numba", torch.float32, 1e-4)]
)
@pytest.mark.parametrize("case", CASES)
def test_wkv6_is_the_authors(case, backend, dtype, tolerance):
    stored = {name: torch.from_numpy(STORED[f"{case}.{name}"]) for name in (*NAMES, "gy", "gST")}
    inputs = [stored[name].to(dtype).requires_grad_() for name in NAMES]
    r, time_decay, *others = inputs
    # RWKV-5's (H, N) is that of every token
    results = wkv6(r, log_decay_of(time_decay).expand(r.shape), *others, backend=backend)
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


@pytest.mark.parametrize("log_decay", [0.0, -1e-6, -10.0, -50.0, -80.0, -1e26])
def test_no_decay_is_too_strong_or_too_weak(log_decay):
    inputs = inputs_of(1, 70, 1, 16)
    inputs[LOG_DECAY].data.fill_(log_decay)
    found, wanted = everything(inputs, "numba"), everything(inputs, "reference")
    assert_all_close(found, wanted)
    assert all(part.isfinite().all() for part in found)


def test_a_text_in_two_pieces_is_the_text():
    r, log_decay, k, v, u, state = inputs_of(2, 37, 2, 12)
    whole, last = wkv6(r, log_decay, k, v, u, state, backend="numba")
    first, carried = wkv6(*(x[:, :20] for x in (r, log_decay, k, v)), u, state, backend="numba")
    second, end = wkv6(*(x[:, 20:] for x in (r, log_decay, k, v)), u, carried, backend="numba")
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(end, last)


def test_threads_change_nothing():
    inputs = inputs_of(2, 130, 4, 33)
    alone = everything(inputs, "numba")
    torch.set_num_threads(2)
    assert all(map(torch.equal, everything(inputs, "numba"), alone))


def test_a_written_value_is_read_and_decays():
    # by hand: one head of two channels; write 3 along channel 0, which halves; its own token reads it twice
    r, log_decay, k, v = torch.zeros(4, 1, 3, 1, 2)
    r[..., 0] = k[:, 0, :, 0] = 1.0
    v[:, 0, :, 1] = 3.0
    log_decay[..., 0] = -math.log(2)
    output, state = wkv6(r, log_decay, k, v, torch.tensor([[2.0, 0.0]]), backend="numba")
    assert output.flatten().tolist() == pytest.approx([0.0, 6.0, 0.0, 3.0, 0.0, 1.5])
    assert state.flatten().tolist() == pytest.approx([0.0, 0.75, 0.0, 0.0])


def test_operator_is_one_of_torch():
    torch.library.opcheck(wkv6_operator.definition, inputs_of(1, 5, 2, 4))


def test_cost_is_what_the_reference_does():
    inputs = inputs_of(2, 3, 2, 4)
    output = wkv6_operator(*inputs)
    cost = torch.ops.spikegpt.wkv6.default.op_cost(tuple(inputs), {}, output)
    # a token of a head of 4: r u k 8 and 3, times v 4, added 4; (S^T r) 16 and 12; decay 16, k v 16, their sum 16
    heads = 2 * 3 * 2
    assert (cost["mul"], cost["add"], cost["exp"]) == (60 * heads, 35 * heads, 4 * heads)
    assert cost["state_elements"] == 2 * 16
    inputs[LOG_DECAY] = inputs[LOG_DECAY][:1, :1].expand(2, 3, 2, 4)
    assert torch.ops.spikegpt.wkv6.default.op_cost(tuple(inputs), {}, output)["exp"] == 2 * 4


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (0, lambda x: x[:, :, :1], "receptance is torch.float32"),
        (3, lambda x: x.double(), "value is torch.float64"),
        (4, lambda x: x[:1], r"time_first is torch.float32 \(1, 4\)"),
        (5, lambda x: x[:, :, :2], "state is torch.float32"),
        (2, lambda x: x[0], "key must be floating point"),
    ],
)
def test_what_does_not_fit_is_named(place, change, words):
    inputs = inputs_of(2, 3, 2, 4)
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=words):
        wkv6(*inputs)
