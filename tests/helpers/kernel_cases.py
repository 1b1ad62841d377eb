"""What the tests of a kernel share, on every backend: sizes, inputs that reach every branch, fixed cotangents."""

import math

import torch
from tolerances import assert_close
from torch import Tensor

from spikegpt.kernels import EventWKV7State

SIZES = [(1, 1, 1), (3, 2, 5), (1, 63, 33), (3, 257, 130), (3, 1, 130), (1, 257, 5), (1, 63, 600)]  # odd on purpose

EVENT_WKV_RESULTS = (
    "output",
    "numerator",
    "denominator",
    "d_time_decay",
    "d_time_first",
    "d_key",
    "d_value",
    "d_numerator",
    "d_denominator",
)
HEIGHTS = {"binary": 1, "signed": 1, "integer": 8, "most": 127}


def event_wkv_inputs(B, T, C, dtype=torch.float32, rate=0.3, spikes="signed") -> list[Tensor]:
    """Return [time_decay, time_first, key, value, numerator, denominator]; a share `rate` of the values is not 0."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    time_decay, time_first = torch.randn(C, generator=generator), torch.randn(C, generator=generator)
    key = torch.randn(B, T, C, generator=generator) * 2
    height = torch.randint(1, HEIGHTS[spikes] + 1, (B, T, C), generator=generator)
    sign = 1 if spikes == "binary" else 1 - 2 * torch.randint(0, 2, (B, T, C), generator=generator)
    value = height * sign * (torch.rand(B, T, C, generator=generator) < rate)
    numerator, denominator = torch.randn(B, C, generator=generator), torch.rand(B, C, generator=generator) + 0.5
    return [time_decay, time_first, key.to(dtype), value.to(dtype), numerator, denominator]


def wkv6_inputs(B, T, H, N, dtype=torch.float32) -> list[Tensor]:
    """Return [receptance, log_decay, key, value, time_first, state], with gradients."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + N)
    r, d, k, v = torch.randn(4, B, T, H, N, generator=generator)
    u, state = torch.randn(H, N, generator=generator), torch.randn(B, H, N, N, generator=generator)
    r, k, v = (x.to(dtype) for x in (r, k / math.sqrt(N), v))
    return [x.requires_grad_() for x in (r, -torch.exp(2 * d - 1), k, v, u, state)]


def wkv7_inputs(B, T, H, N, dtype=torch.float32) -> list[Tensor]:
    """Return [receptance, log_decay, key, value, a, b, state], with gradients; decays and keys are bounded."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + N)
    r, d, k, v, direction, rate = torch.randn(6, B, T, H, N, generator=generator)
    direction = torch.nn.functional.normalize(direction, dim=-1)
    log_decay = -math.exp(-0.5) * torch.sigmoid(3 * d)
    tensors = [x.to(dtype) for x in (r, k / math.sqrt(N), v, -direction, direction * torch.sigmoid(rate))]
    inputs = [tensors[0], log_decay, *tensors[1:], torch.randn(B, H, N, N, generator=generator)]
    return [x.requires_grad_() for x in inputs]


def event_wkv7_inputs(B, T, H, N, firing, dtype=torch.float32) -> list[Tensor]:
    """Return [receptance, log_decay, key, value, a, b] as in a model whose receptances and keys are spikes."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + N)
    r, d, k, v, rate = torch.randn(5, B, T, H, N, generator=generator)
    r, k = (torch.where(torch.rand(r.shape, generator=generator) < firing, x, 0.0) for x in (r, k))
    direction = torch.nn.functional.normalize(k, dim=-1)
    log_decay = -math.exp(-0.5) * torch.sigmoid(3 * d)
    tensors = [r, log_decay, k / math.sqrt(N), v, -direction, direction * torch.sigmoid(rate)]
    return [x if x is log_decay and dtype != torch.float64 else x.to(dtype) for x in tensors]


def event_wkv7_state(B, H, N, dtype=torch.float32) -> EventWKV7State:
    generator = torch.Generator().manual_seed(N)
    waiting = -2 * torch.rand(B, H, N, generator=generator)
    return EventWKV7State(torch.randn(B, H, N, N, generator=generator).to(dtype), waiting.to(dtype))


def integer_lif_inputs(B, T, C, dtype=torch.float32, memoryless=False) -> list[Tensor]:
    """Return [current, potential, membrane_decay, threshold], with gradients: counts from -8 to 8 and beyond occur."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    current = (torch.randn(B, T, C, generator=generator) * 4 + 0.5).to(dtype)
    potential, decay = torch.randn(B, C, generator=generator) * 0.5, torch.rand(C, generator=generator)
    threshold = torch.rand(C, generator=generator) + 0.5
    return [tensor.requires_grad_() for tensor in (current, potential, decay * (not memoryless), threshold)]


def cotangents_of(results) -> list[Tensor]:
    """Return a fixed random cotangent for each of `results`."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(result.shape, generator=generator).to(result.dtype) for result in results]


def assert_all_close(found, wanted, dtype: torch.dtype = torch.float32) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, dtype)


def everything_by(forward, backward, inputs) -> list[Tensor]:
    """Return (output, state, gradients of `inputs`) under a fixed random cotangent, by the functions of a kernel."""
    results = forward(*inputs)
    return [*results, *backward(*cotangents_of(results), *inputs)]


def everything_by_reference(operation, inputs) -> list[Tensor]:
    """The same by an operation in plain torch on heads (..., key third, ..., state last), in float64, then rounded."""
    kinds = [inputs[2], inputs[-1]]
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    results = operation(*leaves)
    grads = torch.autograd.grad(results, leaves, [cotangent.double() for cotangent in cotangents_of(kinds)])
    return [x.detach().to(kind.dtype) for x, kind in zip((*results, *grads), (*kinds, *inputs), strict=True)]
