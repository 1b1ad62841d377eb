"""The integer LIF neuron on CUDA: allocates what cuda/integer_lif.cu writes and launches it; reached only through the
door of `integer_lif`."""

import torch
from torch import Tensor

from .. import gpu as cupy_cuda

# steps between two checkpoints of the way back: BACK_STEPS of cuda/integer_lif.cu
BACK_STEPS = 16
SPIKES_PER_WORD = 32


def integer_lif_forward(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: Tensor, levels: int, signed: bool, reset:
    str, decay_input: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (spikes (B, T, C) in the dtype of `current`, final potential (B, C) float32)."""
    spikes = torch.empty_like(current, memory_format=torch.contiguous_format)
    last = _forward(
        current, potential, membrane_decay, threshold, spikes, None, None, levels, signed, reset, decay_input
    )
    return spikes, last


def integer_lif_forward_packed(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: Tensor, levels: int, signed: bool, reset:
    str, decay_input: bool, store_membrane: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Return (planes (P, B, ceil(T / 32), C) int32, membrane (B, T, C) float32 or None, final potential (B, C)).

    Bit i of word w belongs to step 32 w + i. The planes are the bits of |spikes|, lowest first, and if `signed` one
    more that is 1 for negative spikes: 1/8 byte per plane, neuron and step. The membrane is the potential before the
    reset.
    """
    B, T, C = current.shape
    planes = torch.empty(
        levels.bit_length() + signed, B, -(-T // SPIKES_PER_WORD), C, dtype=torch.int32, device=current.device
    )
    membrane = torch.empty(B, T, C, device=current.device) if store_membrane else None
    last = _forward(
        current, potential, membrane_decay, threshold, None, planes, membrane, levels, signed, reset, decay_input
    )
    return planes, membrane, last


def _forward(
    current, potential, decay, threshold, spikes, planes, membrane, levels, signed, reset, decay_input
) -> Tensor:
    B, T, C = current.shape
    last = torch.empty_like(potential, memory_format=torch.contiguous_format)
    tensors = (
        current.contiguous(),
        potential.contiguous(),
        decay.contiguous(),
        threshold.contiguous(),
        spikes,
        planes,
        membrane,
        last,
    )
    options = levels, signed, reset == "subtract", decay_input, levels.bit_length()
    cupy_cuda.launch("integer_lif", "integer_lif_forward", current.dtype, B * C, *tensors, B, T, C, *options)
    return last


def integer_lif_backward(
    grad_spikes: Tensor, grad_final: Tensor, current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold:
    Tensor, levels: int, signed: bool, reset: str, decay_input: bool, membrane: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (current, potential, membrane_decay, threshold); without a stored `membrane` it is
    computed once more."""
    B, T, C = current.shape
    grad_current = torch.empty_like(current, memory_format=torch.contiguous_format)
    # of potential, membrane_decay and threshold: one row per batch row
    grads = [torch.empty(B, C, device=current.device) for _ in range(3)]
    checkpoints = torch.empty(-(-T // BACK_STEPS), B, C, device=current.device) if membrane is None else None
    tensors = [
        tensor.contiguous() for tensor in (grad_spikes, grad_final, current, potential, membrane_decay, threshold)
    ]
    tensors += [membrane, checkpoints, grad_current, *grads]
    options = levels, signed, reset == "subtract", decay_input
    cupy_cuda.launch("integer_lif", "integer_lif_backward", current.dtype, B * C, *tensors, B, T, C, *options)
    return grad_current, grads[0], grads[1].sum(0), grads[2].sum(0)
