"""The integer LIF neuron on CUDA: allocates what cuda/integer_lif.cu writes and launches it.

Reached only through the door of `integer_lif`.
"""

import torch
from torch import Tensor

from .. import gpu
from ..operators import new_like
from .options import IntegerLIFOptions

# steps between two checkpoints of the backward pass: BACK_STEPS of cuda/integer_lif.cu
BACK_STEPS = 16
SPIKES_PER_WORD = 32


def integer_lif_forward(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: Tensor, options: IntegerLIFOptions
) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in the dtype of `current`, final potential (B, C) float32)."""
    spikes = new_like(current)
    return spikes, _forward(current, potential, membrane_decay, threshold, spikes, None, None, options)


def integer_lif_forward_packed(
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    threshold: Tensor,
    options: IntegerLIFOptions,
    store_membrane: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return (planes (P, B, ceil(T / 32), C) int32, membrane (B, T, C) float32 or None, final potential (B, C)).

    Bit i of word w belongs to step 32 w + i. The planes are the bits of |spikes|, lowest first, and if `signed` one
    more that is 1 for negative spikes: 1/8 byte per plane, neuron and step. The membrane is the potential before the
    reset.
    """
    B, T, C = current.shape
    count = options.levels.bit_length() + options.signed
    planes = torch.empty(count, B, -(-T // SPIKES_PER_WORD), C, dtype=torch.int32, device=current.device)
    membrane = torch.empty(B, T, C, device=current.device) if store_membrane else None
    last = _forward(current, potential, membrane_decay, threshold, None, planes, membrane, options)
    return planes, membrane, last


def _forward(
    current: Tensor,
    potential: Tensor,
    decay: Tensor,
    threshold: Tensor,
    spikes: Tensor | None,
    planes: Tensor | None,
    membrane: Tensor | None,
    options: IntegerLIFOptions,
) -> Tensor:
    B, T, C = current.shape
    last = new_like(potential)
    inputs = (tensor.contiguous() for tensor in (current, potential, decay, threshold))
    outputs = spikes, planes, membrane, last
    rule = *_scalars(options), options.levels.bit_length()
    gpu.launch("integer_lif", "integer_lif_forward", current.dtype, B * C, *inputs, *outputs, B, T, C, *rule)
    return last


def integer_lif_backward(
    grad_spikes: Tensor,
    grad_final: Tensor,
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    threshold: Tensor,
    options: IntegerLIFOptions,
    membrane: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of (current, potential, membrane_decay, threshold); without `membrane` it is recomputed."""
    sizes = B, T, C = current.shape
    grad_current = new_like(current)
    # of potential, membrane_decay and threshold: one row per batch row
    grads = [torch.empty(B, C, device=current.device) for _ in range(3)]
    checkpoints = torch.empty(-(-T // BACK_STEPS), B, C, device=current.device) if membrane is None else None
    given = grad_spikes, grad_final, current, potential, membrane_decay, threshold
    inputs = (tensor.contiguous() for tensor in given)
    outputs = membrane, checkpoints, grad_current, *grads
    gpu.launch(
        "integer_lif", "integer_lif_backward", current.dtype, B * C, *inputs, *outputs, *sizes, *_scalars(options)
    )
    return grad_current, grads[0], grads[1].sum(0), grads[2].sum(0)


def _scalars(options: IntegerLIFOptions) -> tuple[float, ...]:
    """Return (levels, signed, keeps, taken, decay_input): a potential `keeps` what spikes do not take off it."""
    taken = float(options.reset == "subtract")
    return options.levels, options.signed, options.reset != "zero", taken, options.decay_input
