"""RWKV-7's WKV on CUDA: allocates what cuda/wkv7.cu writes and launches it; reached only through the door of `wkv7`."""

import torch
from torch import Tensor

from ..gpu import aligned, head_inputs, launch_heads
from ..operators import new_like

# tokens between two states that the backward pass keeps: CHUNK of cuda/wkv7.cu
CHUNK = 32


def wkv7_forward(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (output (B, T, H, N) in the dtype of `key`, state (B, H, N, N) in float32).

    Raises:
        ValueError: N is none of HEAD_SIZES.
    """
    inputs = head_inputs("wkv7", receptance, log_decay, key, value, a, b, state)
    output, last = new_like(key), new_like(state)
    launch_heads("wkv7", "wkv7_forward", key, *inputs, output, None, last)
    return output, last


def wkv7_backward(
    grad_output: Tensor, grad_state: Tensor, receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor,
    a: Tensor, b: Tensor, state: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of (receptance, log_decay, key, value, a, b, state).

    Raises:
        ValueError: N is none of HEAD_SIZES.
    """
    B, T, H, N = key.shape
    inputs = head_inputs("wkv7", receptance, log_decay, key, value, a, b, state)
    receptance, decay, key, value, a, b, state = inputs
    grad_output, grad_last = aligned(grad_output), aligned(grad_state)
    removed, grad_removed, terms, grad_log_decay = (torch.empty_like(decay) for _ in range(4))
    grad_receptance, grad_key, grad_value, grad_a, grad_b = (torch.empty_like(key) for _ in range(5))
    checkpoints, grad_first = torch.empty(-(-T // CHUNK), B, H, N, N, device=key.device), torch.empty_like(state)
    launch_heads("wkv7", "wkv7_forward", key, *inputs, None, removed, None)
    upstream, products = (grad_output, grad_last), (removed, grad_removed)
    launch_heads(
        "wkv7", "wkv7_backward_rows", key, *upstream, receptance, decay, key, a, b, grad_value, grad_removed, grad_first
    )
    launch_heads(
        "wkv7", "wkv7_backward_state", key, grad_output, *inputs, *products, grad_receptance, grad_a, terms, checkpoints
    )
    known = *inputs[:-1], *products, terms, checkpoints
    launch_heads("wkv7", "wkv7_backward_columns", key, *upstream, *known, grad_log_decay, grad_key, grad_b)
    return grad_receptance, grad_log_decay, grad_key, grad_value, grad_a, grad_b, grad_first
