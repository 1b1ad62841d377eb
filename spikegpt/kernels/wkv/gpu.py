"""RWKV-4's WKV on CUDA: allocates what cuda/wkv.cu writes and launches it; reached only through the door of `wkv`."""

import math

import torch
from torch import Tensor

from .. import gpu
from ..decay import log_decay_of, time_decay_gradient
from ..operators import new_like

# steps between two checkpoints of the backward pass: BACK_STEPS of cuda/wkv.cu
BACK_STEPS = 8
# a split of the time is a multiple of this, which STEPS and BACK_STEPS divide, and not shorter than the second
SPLIT_MULTIPLE, SHORTEST_SPLIT = 16, 64
# channels of texts from which on there are threads enough without splits, and how many threads splits should make
ENOUGH_NEURONS, WANTED_THREADS = 8192, 32768


def wkv_forward(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor,
    max_exponent: Tensor, *, receptance: Tensor | None = None, splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator, max_exponent), states (B, C) float32.

    With `receptance` the output is multiplied by its sigmoid. `splits` cuts the time; None chooses.
    """
    B, T, C = key.shape
    splits, split_steps = cut_time(B * C, T, splits)
    sizes = B, T, C, splits, split_steps
    key, value, log_decay, *state = _inputs(key, value, time_decay, numerator, denominator, max_exponent)
    states = _split_states(key, value, log_decay, sizes)
    output, last_numerator, last_denominator, last_exponent = map(new_like, (key, *state))
    inputs = key, value, _contiguous_or_none(receptance), log_decay, time_first.contiguous(), *state, states
    tensors = *inputs, output, last_numerator, last_denominator, last_exponent
    gpu.launch("wkv", "wkv_forward", key.dtype, (B * C, splits), *tensors, *sizes)
    return output, last_numerator, last_denominator, last_exponent


def wkv_backward(
    grad_output: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, time_decay: Tensor, time_first: Tensor,
    key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor, max_exponent: Tensor, *, receptance: Tensor |
    None = None, splits: int | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of (time_decay, time_first, key, value, numerator, denominator[, receptance if given])."""
    B, T, C = key.shape
    splits, split_steps = cut_time(B * C, T, splits)
    sizes, grid = (B, T, C, splits, split_steps), (B * C, splits)
    key, value, log_decay, *state = _inputs(key, value, time_decay, numerator, denominator, max_exponent)
    first, receptance, grad_output = time_first.contiguous(), _contiguous_or_none(receptance), grad_output.contiguous()
    states = _split_states(key, value, log_decay, sizes)

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, B, C, device=key.device)

    checkpoints, leaving = empty(3, -(-T // BACK_STEPS)), empty(splits)
    gpu.launch(
        "wkv", "wkv_checkpoints", key.dtype, grid, key, value, log_decay, *state, states, checkpoints, leaving, *sizes
    )
    gradients = None
    if splits > 1:
        gradients = empty(2, splits)
        tensors = key, value, receptance, grad_output, log_decay, first, checkpoints, gradients
        gpu.launch("wkv", "wkv_split_gradients", key.dtype, (B * C, splits - 1), *tensors, *sizes)
    grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
    grad_receptance = None if receptance is None else torch.empty_like(receptance)
    grad_decay, grad_first, *grad_state = empty(splits), empty(splits), empty(), empty()
    inputs = (
        key,
        value,
        receptance,
        grad_output,
        *_contiguous(grad_numerator, grad_denominator),
        log_decay,
        first,
        checkpoints,
        leaving,
        gradients,
    )
    outputs = grad_key, grad_value, grad_receptance, grad_decay, grad_first, *grad_state
    gpu.launch("wkv", "wkv_backward", key.dtype, grid, *inputs, *outputs, *sizes)
    grad_time_decay = time_decay_gradient(grad_decay.sum((0, 1)), time_decay, log_decay)
    grads = grad_time_decay, grad_first.sum((0, 1)), grad_key, grad_value, *grad_state
    return grads if grad_receptance is None else (*grads, grad_receptance)


def cut_time(neurons: int, T: int, splits: int | None = None) -> tuple[int, int]:
    """Return (splits, steps of a split): as many as make WANTED_THREADS of few neurons, or about `splits`."""
    if splits is None:
        splits = (
            1 if neurons >= ENOUGH_NEURONS else min(math.ceil(WANTED_THREADS / neurons), max(T // SHORTEST_SPLIT, 1))
        )
    steps = SPLIT_MULTIPLE * math.ceil(T / (splits * SPLIT_MULTIPLE))
    return math.ceil(T / steps), steps


def _split_states(key: Tensor, value: Tensor, log_decay: Tensor, sizes: tuple[int, ...]) -> Tensor | None:
    """Return what each split leaves behind alone, (3, splits, B, C), the last one's unwritten; None if there is one."""
    B, _, C, splits, _ = sizes
    if splits == 1:
        return None
    states = torch.empty(3, splits, B, C, device=key.device)
    gpu.launch("wkv", "wkv_split_states", key.dtype, (B * C, splits - 1), key, value, log_decay, states, *sizes)
    return states


def _inputs(key: Tensor, value: Tensor, time_decay: Tensor, *state: Tensor) -> list[Tensor]:
    return _contiguous(key, value, log_decay_of(time_decay.detach()), *state)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _contiguous_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
