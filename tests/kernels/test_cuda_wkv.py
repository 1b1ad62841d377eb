"""The CUDA kernels of the WKV, on the CPU by `cuda_on_host`, against the reference: every split of time, gated too."""

import pytest
import torch
from cuda_on_host import needs_compiler
from tolerances import TOLERANCE as TOLERANCES
from tolerances import assert_close

from spikegpt.kernels import WKVState
from spikegpt.kernels.wkv import gpu as cuda_wkv
from spikegpt.kernels.wkv import reference

pytestmark = needs_compiler
SIZES = [(1, 1, 1), (3, 2, 5), (2, 63, 33), (1, 97, 130), (2, 257, 9), (3, 64, 65)]  # odd on purpose, and whole splits
# splits of the time add in another order
TOLERANCE = TOLERANCES | {torch.float32: 2e-5}
gated_or_not = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def make_inputs(B, T, C, dtype=torch.float32):
    """Return [time_decay, time_first, key, value, numerator, denominator, max_exponent, receptance]."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    sequences = [normal(B, T, C).to(dtype) * 2, normal(B, T, C).to(dtype)]
    state = [normal(B, C), normal(B, C).abs() + 0.5, normal(B, C)]
    return [normal(C) - 2, normal(C), *sequences, *state, normal(B, T, C).to(dtype)]


def wanted_of(inputs, gated):
    """Return the outputs of the reference in float64, cotangents, and the gradients of all inputs but max_exponent."""
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    output, *state = reference.wkv(*leaves[:7])
    outputs = [torch.sigmoid(leaves[7]) * output if gated else output, *state[:2]]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(out.shape, generator=generator) for out in outputs]
    cotangents[0] = cotangents[0].to(inputs[2].dtype)
    differentiable = [*leaves[:6], *leaves[7:]][: 7 if gated else 6]
    return (
        [*outputs, state[2]],
        cotangents,
        torch.autograd.grad(outputs, differentiable, [c.double() for c in cotangents]),
    )


def assert_matches(inputs, splits=None, gated=False, rounding=0.0):
    dtype = inputs[2].dtype
    tolerance = TOLERANCE[dtype] + rounding
    outputs, cotangents, grads = wanted_of(inputs, gated)
    gate = inputs[7] if gated else None
    found = cuda_wkv.wkv_forward(*inputs[:7], receptance=gate, splits=splits)
    # the scale is free: what counts is the state that it scales
    shift = torch.exp(found[3].double() - outputs[3]).detach()
    assert_close(found[0], outputs[0].detach().to(dtype), tolerance=tolerance)
    for ours, wanted in zip(found[1:3], outputs[1:3], strict=True):
        assert_close((ours * shift).float(), wanted.detach().float(), tolerance=tolerance)
    found = cuda_wkv.wkv_backward(*cotangents, *inputs[:7], receptance=gate, splits=splits)
    for ours, wanted in zip(found, grads, strict=True):
        assert_close(ours, wanted.to(ours.dtype), tolerance=tolerance)


@gated_or_not
@pytest.mark.parametrize("splits", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_wkv_matches_reference_at_every_size_and_split(host, size, splits, gated):
    assert_matches(make_inputs(*size), splits, gated)


@gated_or_not
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_wkv_matches_reference_in_every_dtype(host, dtype, splits, gated):
    assert_matches(make_inputs(2, 63, 33, dtype), splits, gated)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("time_decay", [-100.0, -20.0, 4.0, 60.0, 100.0])
def test_wkv_matches_reference_at_extreme_decays(host, time_decay, splits):
    inputs = make_inputs(2, 63, 9)
    inputs[0].fill_(time_decay)
    assert_matches(inputs, splits)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("size", [20.0, 80.0, 1000.0])
def test_wkv_matches_reference_at_extreme_keys(host, size, splits):
    inputs = make_inputs(2, 63, 9)
    inputs[2].copy_(size * inputs[2].sign())
    # an exponent of this size is kept in float32, and decays at each of the 63 steps
    assert_matches(inputs, splits, rounding=63 * size * 2**-24)


@gated_or_not
@pytest.mark.parametrize("splits", [1, 2])
def test_wkv_begins_from_nothing(host, splits, gated):
    inputs = make_inputs(2, 63, 9)
    inputs[4:7] = WKVState.empty(2, 9)
    assert_matches(inputs, splits, gated)


@pytest.mark.parametrize("splits", [1, 3])
def test_keys_far_below_zero_are_not_lost_when_nothing_came_before(host, splits):
    inputs = make_inputs(2, 63, 9)
    inputs[2].sub_(1000)
    inputs[4:7] = WKVState.empty(2, 9)
    assert_matches(inputs, splits, rounding=63 * 1000 * 2**-24)


@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_a_gate_may_be_wide_open_or_shut(host, size):
    inputs = make_inputs(2, 63, 9)
    inputs[7].copy_(size * inputs[7].sign())
    assert_matches(inputs, gated=True)


@gated_or_not
def test_inputs_need_not_be_contiguous(host, gated):
    inputs = [strided(tensor) for tensor in make_inputs(2, 63, 9)]
    cotangents = [strided(torch.ones(shape)) for shape in ((2, 63, 9), (2, 9), (2, 9))]
    gate = {"receptance": inputs[7] if gated else None}
    found = *cuda_wkv.wkv_forward(*inputs[:7], **gate), *cuda_wkv.wkv_backward(*cotangents, *inputs[:7], **gate)

    inputs, cotangents = ([tensor.contiguous() for tensor in tensors] for tensors in (inputs, cotangents))
    gate = {"receptance": inputs[7] if gated else None}
    wanted = *cuda_wkv.wkv_forward(*inputs[:7], **gate), *cuda_wkv.wkv_backward(*cotangents, *inputs[:7], **gate)
    assert all(torch.equal(ours, same) for ours, same in zip(found, wanted, strict=True))


def strided(tensor):
    """Return the same numbers, two apart in memory."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


@pytest.mark.parametrize("splits", [None, 2, 3, 7])
def test_results_do_not_depend_on_the_number_of_splits(host, splits):
    inputs = make_inputs(2, 257, 9)
    cotangents = [torch.ones(shape) for shape in ((2, 257, 9), (2, 9), (2, 9))]
    found = cuda_wkv.wkv_backward(*cotangents, *inputs[:7], receptance=inputs[7], splits=splits)
    wanted = cuda_wkv.wkv_backward(*cotangents, *inputs[:7], receptance=inputs[7], splits=1)
    for ours, whole in zip(found, wanted, strict=True):
        assert_close(ours, whole, tolerance=5e-6)


def test_gradients_between_splits_stay_exact_at_a_large_exponent(host):
    # entering by joining and leaving step by step round this exponent differently
    inputs = make_inputs(2, 512, 33)
    inputs[0] = inputs[0] / 2 - 5
    inputs[2].add_(97)
    inputs[6].add_(100)
    _, cotangents, grads = wanted_of(inputs, gated=False)
    found = cuda_wkv.wkv_backward(*cotangents, *inputs[:7], splits=8)
    for ours, wanted in zip(found[2:], grads[2:], strict=True):
        assert_close(ours, wanted.float(), tolerance=3e-4)


def test_few_channels_are_split_and_many_are_not():
    assert cuda_wkv.cut_time(768, 1024) == (16, 64)
    assert cuda_wkv.cut_time(768, 63) == (1, 64)
    assert cuda_wkv.cut_time(12288, 1024) == (1, 1024)
    assert all(
        -(-T // steps) == splits
        for T in range(1, 300)
        for asked in (None, 1, 2, 7)
        for splits, steps in [cuda_wkv.cut_time(100, T, asked)]
    )


def test_a_split_launches_what_it_needs_and_no_more(host):
    inputs = make_inputs(1, 64, 5)
    cuda_wkv.wkv_forward(*inputs[:7], splits=1)
    assert host.ran == ["wkv_forward"]
    cuda_wkv.wkv_forward(*inputs[:7], splits=2)
    assert host.ran[1:] == ["wkv_split_states", "wkv_forward"]
