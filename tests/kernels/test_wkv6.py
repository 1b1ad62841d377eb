"""The WKV of RWKV-5 and -6 alone: unbounded decays, numbers by hand, its cost. The rest is in test_wkv_of_heads.py."""

import math

import pytest
import torch
from kernel_cases import assert_all_close, cotangents_of, wkv6_inputs

from spikegpt.kernels import wkv6
from spikegpt.kernels.wkv6.door import wkv6_operator

LOG_DECAY = 1


@pytest.mark.parametrize("log_decay", [0.0, -1e-6, -10.0, -50.0, -80.0, -1e26])
def test_no_decay_is_too_strong_or_too_weak(log_decay):
    inputs = wkv6_inputs(1, 70, 1, 16)
    inputs[LOG_DECAY].data.fill_(log_decay)
    found = []
    for backend in ("numba", "reference"):
        results = wkv6(*inputs, backend=backend)
        found.append([*results, *torch.autograd.grad(results, inputs, cotangents_of(results))])
    assert_all_close(*found)
    assert all(part.isfinite().all() for part in found[0])


def test_a_written_value_is_read_and_decays():
    # by hand: one head of two channels; write 3 along channel 0, which halves; its own token reads it twice
    r, log_decay, k, v = torch.zeros(4, 1, 3, 1, 2)
    r[..., 0] = k[:, 0, :, 0] = 1.0
    v[:, 0, :, 1] = 3.0
    log_decay[..., 0] = -math.log(2)
    output, state = wkv6(r, log_decay, k, v, torch.tensor([[2.0, 0.0]]), backend="numba")
    assert output.flatten().tolist() == pytest.approx([0.0, 6.0, 0.0, 3.0, 0.0, 1.5])
    assert state.flatten().tolist() == pytest.approx([0.0, 0.75, 0.0, 0.0])


def test_cost_is_what_the_reference_does():
    inputs = wkv6_inputs(2, 3, 2, 4)
    output = wkv6_operator(*inputs)
    cost = torch.ops.spikegpt.wkv6.default.op_cost(tuple(inputs), {}, output)
    # a token of a head of 4: r u k 8 and 3, times v 4, added 4; (S^T r) 16 and 12; decay 16, k v 16, their sum 16
    heads = 2 * 3 * 2
    assert (cost["mul"], cost["add"], cost["exp"]) == (60 * heads, 35 * heads, 4 * heads)
    assert cost["state_elements"] == 2 * 16
    inputs[LOG_DECAY] = inputs[LOG_DECAY][:1, :1].expand(2, 3, 2, 4)
    assert torch.ops.spikegpt.wkv6.default.op_cost(tuple(inputs), {}, output)["exp"] == 2 * 4


def test_a_bonus_of_other_heads_is_named():
    inputs = wkv6_inputs(2, 3, 2, 4)
    inputs[4] = inputs[4][:1]
    with pytest.raises(ValueError, match=r"time_first is torch.float32 \(1, 4\)"):
        wkv6(*inputs)
