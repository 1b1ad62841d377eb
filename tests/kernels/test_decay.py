"""exp(-exp(time_decay)) far beyond anything trained: every backend has the reference's limit, no gradient breaks."""

import math

import pytest
import torch
from cuda_on_host import needs_compiler
from tolerances import assert_close

from spikegpt.kernels.cpu import exp_of_few
from spikegpt.kernels.decay import TIME_DECAY_LIMIT, decay_of, log_decay_of, time_decay_gradient
from spikegpt.kernels.event_wkv import cpu as event_wkv_cpu
from spikegpt.kernels.event_wkv import gpu as event_wkv_gpu
from spikegpt.kernels.event_wkv import reference as event_wkv_reference
from spikegpt.kernels.wkv import cpu as wkv_cpu
from spikegpt.kernels.wkv import gpu as wkv_gpu
from spikegpt.kernels.wkv import reference as wkv_reference

EXTREMES = [-1000.0, -100.0, 60.0, 61.0, 88.0, 100.0, 1000.0]
FAST = ["cpu", pytest.param("gpu", marks=needs_compiler)]
extremes = pytest.mark.parametrize("time_decay", EXTREMES)
fast = pytest.mark.parametrize("backend", FAST)


def make_inputs(time_decay: float, state: int) -> list[torch.Tensor]:
    """Return [time_decay, time_first, key, value, *state], the state of so many tensors."""
    generator = torch.Generator().manual_seed(0)
    normal = [torch.randn(shape, generator=generator) for shape in ((5,), (2, 9, 5), (2, 9, 5), *[(2, 5)] * state)]
    # a denominator is a sum of weights
    normal[4] = normal[4].abs() + 0.5
    return [torch.full((5,), time_decay), *normal]


def by_the_kernels(operation: str, kernels, inputs):
    """Return outputs and states, then the gradients of the first six inputs for cotangents of ones."""
    results = getattr(kernels, f"{operation}_forward")(*inputs)
    cotangents = [torch.ones_like(result) for result in results[:3]]
    return [*results, *getattr(kernels, f"{operation}_backward")(*cotangents, *inputs)]


def by_autograd(function, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    results = function(*leaves)
    cotangents = [torch.ones_like(result) for result in results[:3]]
    return [*(result.detach() for result in results), *torch.autograd.grad(results[:3], leaves[:6], cotangents)]


@extremes
@fast
def test_wkv_matches_reference_however_extreme_the_decay(host, backend, time_decay):
    inputs = make_inputs(time_decay, 3)
    found = by_the_kernels("wkv", {"cpu": wkv_cpu, "gpu": wkv_gpu}[backend], inputs)
    for ours, wanted in zip(found, by_autograd(wkv_reference.wkv, inputs), strict=True):
        assert ours.isfinite().all()
        assert_close(ours, wanted)


@extremes
@fast
def test_event_wkv_matches_reference_however_extreme_the_decay(host, backend, time_decay):
    inputs = make_inputs(time_decay, 2)
    inputs[3] = inputs[3].round()
    found = by_the_kernels("event_wkv", {"cpu": event_wkv_cpu, "gpu": event_wkv_gpu}[backend], inputs)
    for ours, wanted in zip(found, by_autograd(event_wkv_reference.event_wkv, inputs), strict=True):
        assert ours.isfinite().all()
        assert_close(ours, wanted)


@fast
def test_a_decay_beyond_the_limit_is_the_limit_even_to_keys_that_it_would_outweigh(host, backend):
    # a key of -1e30 weighs less than what one step leaves, exp(-exp(60)): the past is still heard, and learns nothing
    # of time_decay. Without the limit, exp(88) = 1.7e38 would have left less than the key weighs
    inputs = make_inputs(88.0, 3)
    inputs[2].fill_(-1e30)
    found = by_the_kernels("wkv", {"cpu": wkv_cpu, "gpu": wkv_gpu}[backend], inputs)
    wanted = by_autograd(wkv_reference.wkv, inputs)
    assert torch.equal(found[1], inputs[4]) and torch.equal(wanted[1], inputs[4])
    assert not found[4].any() and not wanted[4].any()


def test_decay_is_known_at_both_ends_and_between():
    # by hand: exp(-exp(log(log 2))) = 1/2
    time_decay = torch.tensor([-1000.0, math.log(math.log(2)), 1000.0], dtype=torch.float64)
    assert decay_of(time_decay).tolist() == pytest.approx([1.0, 0.5, 0.0], rel=1e-15)


def test_log_decay_stops_at_the_limit():
    found = log_decay_of(torch.tensor([TIME_DECAY_LIMIT, 61.0, math.inf]))
    assert found.isfinite().all() and (found == found[0]).all()


def test_the_gradient_is_autograds():
    time_decay = torch.tensor([-1000.0, -1.0, 0.5, 60.0, 60.5, 1000.0], requires_grad=True)
    log_decay, cotangent = log_decay_of(time_decay), torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0, 6.0])
    (wanted,) = torch.autograd.grad(log_decay, time_decay, cotangent)
    assert torch.equal(time_decay_gradient(cotangent, time_decay, log_decay), wanted)


def test_another_exponential_computes_the_same():
    time_decay = torch.linspace(-5, 2, 100)
    torch.testing.assert_close(decay_of(time_decay, exp_of_few), decay_of(time_decay), rtol=1e-6, atol=0)
