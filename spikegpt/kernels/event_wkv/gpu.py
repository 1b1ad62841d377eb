"""The event-driven WKV on CUDA: allocates what cuda/event_wkv.cu writes and launches it, for the door of `event_wkv`.

The values are spikes as elements, or packed: planes (planes, B, ceil(T / 32), C) int32, bit i of word w being step 32 w
+ i and 0 beyond T. Plane j is bit j of |value|, of at most 127; if `signed`, one last plane has 1 where the value is
negative.
"""

import torch
from torch import Tensor

from .. import gpu
from ..decay import decay_of, log_decay_of, time_decay_gradient
from ..operators import new_like
from .reference import EVENT_KEY_LIMIT

# steps between two checkpoints of the backward pass: STEPS of cuda/event_wkv.cu
STEPS = 32


def event_wkv_forward(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator), the state (B, C) in float32."""
    return _forward(time_decay, time_first, key, value.contiguous(), None, False, numerator, denominator)


def event_wkv_forward_packed(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    planes: Tensor,
    signed: bool,
    numerator: Tensor,
    denominator: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `event_wkv_forward` returns of the values that `planes` are."""
    return _forward(time_decay, time_first, key, None, planes.contiguous(), signed, numerator, denominator)


def event_wkv_backward(
    grad_output: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, time_decay: Tensor, time_first: Tensor,
    key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (time_decay, time_first, key, value, numerator, denominator)."""
    grads = grad_output, grad_numerator, grad_denominator
    return _backward(*grads, time_decay, time_first, key, value.contiguous(), None, False, numerator, denominator)


def event_wkv_backward_packed(
    grad_output: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, time_decay: Tensor, time_first: Tensor,
    key: Tensor, planes: Tensor, signed: bool, numerator: Tensor, denominator: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return what `event_wkv_backward` returns of the values that `planes` are; their gradient is (B, T, C)."""
    grads = grad_output, grad_numerator, grad_denominator
    return _backward(*grads, time_decay, time_first, key, None, planes.contiguous(), signed, numerator, denominator)


def _forward(
    time_decay, time_first, key, value, planes, signed, numerator, denominator
) -> tuple[Tensor, Tensor, Tensor]:
    output, last_numerator, last_denominator = map(new_like, (key, numerator, denominator))
    inputs = (
        value,
        planes,
        key.contiguous(),
        decay_of(time_decay.detach().float()),
        _first(time_first),
        numerator.contiguous(),
        denominator.contiguous(),
    )
    _launch("event_wkv_forward", key, planes, signed, *inputs, output, last_numerator, last_denominator)
    return output, last_numerator, last_denominator


def _backward(
    grad_output,
    grad_numerator,
    grad_denominator,
    time_decay,
    time_first,
    key,
    value,
    planes,
    signed,
    numerator,
    denominator,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, C = key.shape
    log_decay = log_decay_of(time_decay.detach().float())
    checkpoints = torch.empty(-(-T // STEPS), 2, B, C, device=key.device)
    grad_key, grad_value = new_like(key), new_like(key)
    # of the log decay, of time_first, of the incoming numerator and denominator
    grads = [new_like(numerator) for _ in range(4)]
    cotangents = grad_output.contiguous(), grad_numerator.contiguous(), grad_denominator.contiguous()
    inputs = key.contiguous(), log_decay.exp(), _first(time_first), numerator.contiguous(), denominator.contiguous()
    tensors = value, planes, *cotangents, *inputs
    _launch("event_wkv_backward", key, planes, signed, *tensors, checkpoints, grad_key, grad_value, *grads)
    # as the reference's clamp: nothing beyond the limits
    grad_first = torch.where(time_first.detach().abs() <= EVENT_KEY_LIMIT, grads[1].sum(0), 0.0)
    grad_decay = time_decay_gradient(grads[0].sum(0), time_decay, log_decay)
    return grad_decay, grad_first, grad_key, grad_value, grads[2], grads[3]


def _launch(kernel: str, key: Tensor, planes: Tensor | None, signed: bool, *tensors: Tensor | None) -> None:
    B, T, C = key.shape
    magnitudes = 0 if planes is None else len(planes) - signed
    gpu.launch("event_wkv", kernel, key.dtype, B * C, *tensors, B, T, C, magnitudes, signed)


def _first(time_first: Tensor) -> Tensor:
    return time_first.detach().float().clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT).exp()
