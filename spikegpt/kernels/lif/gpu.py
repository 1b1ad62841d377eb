"""The LIF neuron on CUDA: allocates what cuda/lif.cu writes and launches it; reached only through the door of `lif`."""

import torch
from torch import Tensor

from .. import gpu
from ..operators import new_like
from ..surrogates import SURROGATES
from .options import LIFOptions

# steps between two checkpoints of the backward pass: BACK_STEPS of cuda/lif.cu
BACK_STEPS = 16
SPIKES_PER_WORD = 32


def lif_forward(current: Tensor, potential: Tensor, decay: Tensor, options: LIFOptions) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in the dtype of `current`, final potential (B, C) float32)."""
    spikes = new_like(current)
    return spikes, _forward(current, potential, decay, spikes, None, None, options)


def lif_forward_packed(
    current: Tensor, potential: Tensor, decay: Tensor, options: LIFOptions, store_membrane: bool = False
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return (packed spikes (B, ceil(T / 32), C) int32, membrane (B, T, C) float32 or None, final potential (B, C)).

    Bit i of word w is the spike of step 32 w + i: 1/8 byte per neuron and step. The membrane is the potential before
    the reset.
    """
    B, T, C = current.shape
    packed = torch.empty(B, -(-T // SPIKES_PER_WORD), C, dtype=torch.int32, device=current.device)
    membrane = torch.empty(B, T, C, device=current.device) if store_membrane else None
    return packed, membrane, _forward(current, potential, decay, None, packed, membrane, options)


def _forward(
    current: Tensor,
    potential: Tensor,
    decay: Tensor,
    spikes: Tensor | None,
    packed: Tensor | None,
    membrane: Tensor | None,
    options: LIFOptions,
) -> Tensor:
    B, T, C = current.shape
    last = new_like(potential)
    tensors = current.contiguous(), potential.contiguous(), decay.contiguous(), spikes, packed, membrane, last
    gpu.launch("lif", "lif_forward", current.dtype, B * C, *tensors, B, T, C, *_scalars(options))
    return last


def lif_backward(
    grad_spikes: Tensor,
    grad_final: Tensor,
    current: Tensor,
    potential: Tensor,
    decay: Tensor,
    options: LIFOptions,
    membrane: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of (current, potential, decay); without a stored `membrane` it is computed once more."""
    sizes = B, T, C = current.shape
    grad_current = new_like(current)
    grad_potential, grad_decay = (torch.empty(B, C, device=current.device) for _ in range(2))
    checkpoints = torch.empty(-(-T // BACK_STEPS), B, C, device=current.device) if membrane is None else None
    inputs = (tensor.contiguous() for tensor in (grad_spikes, grad_final, current, potential, decay))
    outputs = membrane, checkpoints, grad_current, grad_potential, grad_decay
    rule = options.detach_reset, SURROGATES.index(options.surrogate), float(options.slope)
    gpu.launch("lif", "lif_backward", current.dtype, B * C, *inputs, *outputs, *sizes, *_scalars(options), *rule)
    return grad_current, grad_potential, grad_decay.sum(0)


def _scalars(options: LIFOptions) -> tuple[float | bool, ...]:
    """Return (threshold, keep, offset, rest, decay_input)."""
    keep, offset = options.after_spike
    return float(options.threshold), keep, float(offset), float(options.reset_potential), options.decay_input
