"""The WKV of RWKV-5 and -6 on CUDA: allocates what cuda/wkv6.cu writes and launches it; reached only by its door."""

import torch
from torch import Tensor

from ..gpu import aligned, head_inputs, launch_heads
from ..operators import new_like

# tokens between two states that the backward pass keeps: CHUNK of cuda/wkv6.cu
CHUNK = 16


def wkv6_forward(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, time_first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (output (B, T, H, N) in the dtype of `key`, state (B, H, N, N) in float32).

    Raises:
        ValueError: N is none of HEAD_SIZES.
    """
    inputs = head_inputs("wkv6", receptance, log_decay, key, value, time_first, state)
    output, last = new_like(key), new_like(state)
    launch_heads("wkv6", "wkv6_forward", key, *inputs, output, last)
    return output, last


def wkv6_backward(
    grad_output: Tensor, grad_state: Tensor, receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor,
    time_first: Tensor, state: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of (receptance, log_decay, key, value, time_first, state).

    Raises:
        ValueError: N is none of HEAD_SIZES.
    """
    B, T, H, N = key.shape
    inputs = head_inputs("wkv6", receptance, log_decay, key, value, time_first, state)
    receptance, decay, key, value, first, state = inputs
    upstream = aligned(grad_output), aligned(grad_state)
    grad_receptance, grad_key, grad_value = (torch.empty_like(key) for _ in range(3))
    grad_log_decay, grad_before = torch.empty_like(decay), torch.empty_like(state)
    grad_first = torch.empty(B, H, N, device=key.device)
    places = -(-T // CHUNK), CHUNK + 1
    checkpoints, kept = (torch.empty(number, B * H * N, N, device=key.device) for number in places)
    launch_heads(
        "wkv6", "wkv6_backward_columns", key, *upstream, receptance, decay, key, first, grad_value, grad_before
    )
    launch_heads("wkv6", "wkv6_backward_state", key, upstream[0], *inputs, grad_receptance, grad_first, checkpoints)
    known = receptance, decay, key, value, first, checkpoints
    launch_heads("wkv6", "wkv6_backward_rows", key, *upstream, *known, grad_log_decay, grad_key, kept)
    return grad_receptance, grad_log_decay, grad_key, grad_value, grad_first.sum(dim=0), grad_before
