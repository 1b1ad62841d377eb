"""The CUDA kernels of the WKV, run on the CPU by `cuda_on_host`, against the reference: every split of time, gated and not."""

import pytest
import torch
from cuda_on_host import needs_compiler

from spikegpt.kernels import WKVState, cuda_wkv, reference

pytestmark = needs_compiler
SIZES = [(1, 1, 1), (3, 2, 5), (2, 63, 33), (1, 97, 130), (2, 257, 9), (3, 64, 65)]  # odd on purpose, and whole splits
# largest difference allowed, as a fraction of the largest entry
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
gated_or_not = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def assert_close(found, wanted, tolerance):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    found, wanted = found.double(), wanted.double()
    assert (found - wanted).abs().max() <= tolerance * max(wanted.abs().max().item(), 1e-6)


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
    return [*outputs, state[2]], cotangents, torch.autograd.grad(outputs, differentiable, [c.double() for c in cotangents])


def assert_matches(inputs, splits=None, gated=False, rounding=0.0):
    dtype = inputs[2].dtype
    tolerance = TOLERANCE[dtype] + rounding
    outputs, cotangents, grads = wanted_of(inputs, gated)
    gate = inputs[7] if gated else None
    found = cuda_wkv.wkv_forward(*inputs[:7], receptance=gate, splits=splits)
    # the scale is free: what counts is the state that it scales
    shift = torch.exp(found[3].double() - outputs[3]).detach()
    assert_close(found[0], outputs[0].detach().to(dtype), tolerance)
    for ours, wanted in zip(found[1:3], outputs[1:3], strict=True):
        assert_close((ours * shift).float(), wanted.detach().float(), tolerance)
    found = cuda_wkv.wkv_backward(*cotangents, *inputs[:7], receptance=gate, splits=splits)
    for ours, wanted in zip(found, grads, strict=True):
        assert_close(ours, wanted.to(ours.dtype), tolerance)


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


def test_few_channels_are_split_and_many_are_not():
    assert cuda_wkv.cut_time(768, 1024) == (16, 64)
    assert cuda_wkv.cut_time(768, 63) == (1, 64)
    assert cuda_wkv.cut_time(12288, 1024) == (1, 1024)
    assert all(-(-T // steps) == splits for T in range(1, 300) for asked in (None, 1, 2, 7) for splits, steps in [cuda_wkv.cut_time(100, T, asked)])


def test_a_split_launches_what_it_needs_and_no_more(host):
    inputs = make_inputs(1, 64, 5)
    cuda_wkv.wkv_forward(*inputs[:7], splits=1)
    assert host.ran == ["wkv_forward"]
    cuda_wkv.wkv_forward(*inputs[:7], splits=2)
    assert host.ran[1:] == ["wkv_split_states", "wkv_forward"]
