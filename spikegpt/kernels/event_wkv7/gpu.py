"""`event_wkv7` on CUDA: allocates what cuda/event_wkv7.cu writes and launches it; reached only through its door."""

import torch
from torch import Tensor

from .. import gpu
from ..operators import new_like

# of a head, MOST_CHANNELS of cuda/event_wkv7.cu
MOST_CHANNELS = 128
# of a word of events, CHANNELS there
CHANNELS = 32


def event_wkv7_forward(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, a: Tensor, b: Tensor, matrix: Tensor,
    waiting: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (output (B, T, H, N) in the dtype of `key`, matrix (B, H, N, N), waiting (B, H, N)), both in float32.

    Raises:
        ValueError: N is above MOST_CHANNELS.
    """
    B, T, H, N = key.shape
    if N > MOST_CHANNELS:
        raise ValueError(f"{wrong_head_size(N)}; use backend='auto'")
    tensors = receptance, log_decay.detach(), key, value, a, b, matrix, waiting
    receptance, log_decay, key, value, a, b, matrix, waiting = (tensor.contiguous() for tensor in tensors)
    output, last, last_waiting = map(new_like, (key, matrix, waiting))
    words = B, T, H, -(-N // CHANNELS)
    edits, reads = (torch.empty(words, dtype=torch.int32, device=key.device) for _ in range(2))
    erasing, keeping, reading = (torch.empty_like(log_decay) for _ in range(3))

    def launch(kernel: str, threads: int, *arguments: Tensor) -> None:
        gpu.launch("event_wkv7", kernel, key.dtype, threads, *arguments, B, T, H, N)

    launch("event_wkv7_find", edits.numel(), receptance, key, a, b, edits, reads)
    factors = erasing, keeping, reading
    launch("event_wkv7_wait", waiting.numel(), receptance, log_decay, a, edits, waiting, *factors, last_waiting)
    launch("event_wkv7_rows", waiting.numel(), key, value, b, edits, reads, *factors, matrix, output, last)
    return output, last, last_waiting


def wrong_head_size(channels: int) -> str:
    """Return what to say of heads that there is no kernel for."""
    return f"event_wkv7: the kernel for a GPU takes heads of up to {MOST_CHANNELS} channels, got {channels}"
