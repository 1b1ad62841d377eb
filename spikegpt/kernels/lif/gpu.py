"""The LIF neuron on CUDA: allocates what cuda/lif.cu writes and launches it; reached only through the door of `lif`."""

import torch
from torch import Tensor

from .. import gpu as cupy_cuda
from ..reference import SURROGATES

# steps between two checkpoints of the way back: BACK_STEPS of cuda/lif.cu
BACK_STEPS = 16
SPIKES_PER_WORD = 32


def lif_forward(
    current: Tensor, potential: Tensor, decay: Tensor, threshold: float, reset: str, reset_potential: float,
    decay_input: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (spikes (B, T, C) in the dtype of `current`, final potential (B, C) float32)."""
    spikes = torch.empty_like(current, memory_format=torch.contiguous_format)
    last = _forward(current, potential, decay, spikes, None, None, threshold, reset, reset_potential, decay_input)
    return spikes, last


def lif_forward_packed(
    current: Tensor, potential: Tensor, decay: Tensor, threshold: float, reset: str, reset_potential: float,
    decay_input: bool, store_membrane: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Return (packed spikes (B, ceil(T / 32), C) int32, membrane (B, T, C) float32 or None, final potential (B, C)).

    Bit i of word w is the spike of step 32 w + i: 1/8 byte per neuron and step. The membrane is the potential before
    the reset.
    """
    B, T, C = current.shape
    packed = torch.empty(B, -(-T // SPIKES_PER_WORD), C, dtype=torch.int32, device=current.device)
    membrane = torch.empty(B, T, C, device=current.device) if store_membrane else None
    last = _forward(current, potential, decay, None, packed, membrane, threshold, reset, reset_potential, decay_input)
    return packed, membrane, last


def _forward(
    current, potential, decay, spikes, packed, membrane, threshold, reset, reset_potential, decay_input
) -> Tensor:
    B, T, C = current.shape
    last = torch.empty_like(potential, memory_format=torch.contiguous_format)
    tensors = current.contiguous(), potential.contiguous(), decay.contiguous(), spikes, packed, membrane, last
    cupy_cuda.launch(
        "lif",
        "lif_forward",
        current.dtype,
        B * C,
        *tensors,
        B,
        T,
        C,
        *_scalars(threshold, reset, reset_potential),
        decay_input,
    )
    return last


def lif_backward(
    grad_spikes: Tensor, grad_final: Tensor, current: Tensor, potential: Tensor, decay: Tensor, threshold: float,
    reset: str, reset_potential: float, decay_input: bool, detach_reset: bool, surrogate: str, slope: float, membrane:
    Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (current, potential, decay); without a stored `membrane` it is computed once more."""
    B, T, C = current.shape
    grad_current = torch.empty_like(current, memory_format=torch.contiguous_format)
    grad_potential, grad_decay = (torch.empty(B, C, device=current.device) for _ in range(2))
    checkpoints = torch.empty(-(-T // BACK_STEPS), B, C, device=current.device) if membrane is None else None
    tensors = (
        grad_spikes.contiguous(),
        grad_final.contiguous(),
        current.contiguous(),
        potential.contiguous(),
        decay.contiguous(),
    )
    tensors += membrane, checkpoints, grad_current, grad_potential, grad_decay
    options = (
        *_scalars(threshold, reset, reset_potential),
        decay_input,
        detach_reset,
        SURROGATES.index(surrogate),
        float(slope),
    )
    cupy_cuda.launch("lif", "lif_backward", current.dtype, B * C, *tensors, B, T, C, *options)
    return grad_current, grad_potential, grad_decay.sum(0)


def _scalars(threshold: float, reset: str, reset_potential: float) -> tuple[float, float, float, float]:
    """Return (threshold, keep, offset, rest): a spike turns the potential into keep * potential + offset."""
    keep, offset = (1.0, -threshold) if reset == "subtract" else (0.0, reset_potential)
    return float(threshold), keep, float(offset), float(reset_potential)
