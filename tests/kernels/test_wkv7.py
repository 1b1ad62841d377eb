"""RWKV-7's WKV alone: numbers by hand, and its cost. The rest is in test_wkv_of_heads.py."""

import torch
from kernel_cases import wkv7_inputs

from spikegpt.kernels import wkv7
from spikegpt.kernels.wkv7.door import wkv7_operator


def test_a_written_value_is_read_and_removed_again():
    # by hand: one head of two channels; write 3 along channel 0, then remove what is there
    r, w, k, v, a, b = torch.zeros(6, 1, 2, 1, 2)
    r[..., 0] = k[:, 0, :, 0] = 1.0
    v[:, 0, :, 1] = 3.0
    a[:, 1, :, 0], b[:, 1, :, 0] = -1.0, 1.0
    output, state = wkv7(r, w, k, v, a, b, backend="numba")
    assert output.flatten().tolist() == [0.0, 3.0, 0.0, 0.0]
    assert not state.any()


def test_cost_is_what_the_reference_does():
    output = wkv7_operator(*(inputs := wkv7_inputs(2, 3, 2, 4)))
    cost = torch.ops.spikegpt.wkv7.default.op_cost(tuple(inputs), {}, output)
    # a token of a head of 4: (S a) 16 and 12, times b 16, decay 16, v k 16, two sums 32, (S r) 16 and 12
    heads = 2 * 3 * 2
    assert (cost["mul"], cost["add"], cost["exp"]) == (80 * heads, 56 * heads, 4 * heads)
    assert cost["state_elements"] == 2 * 16
