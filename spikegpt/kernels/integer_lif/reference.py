"""The neuron that may fire several unit spikes within one token, in plain torch: one loop over time.

Written to be read. Gradients come from torch's autograd; the fast versions are tested against this file.
"""

import torch
from torch import Tensor

from .options import IntegerLIFOptions


class _CountSpikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, quanta: Tensor, levels: int, signed: bool) -> Tensor:
        ctx.save_for_backward(quanta)
        ctx.levels, ctx.signed = levels, signed
        spikes = torch.floor(quanta.abs()).clamp(max=levels)
        return torch.where(quanta < 0, -spikes if signed else torch.zeros_like(spikes), spikes)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (quanta,) = ctx.saved_tensors
        lowest = -(ctx.levels + 0.5) if ctx.signed else 0.5
        return grad * ((quanta >= lowest) & (quanta <= ctx.levels + 0.5)).to(grad.dtype), None, None


def count_spikes(quanta: Tensor, levels: int, signed: bool) -> Tensor:
    """Return the unit spikes in `quanta` thresholds' worth of potential: whole ones, at most `levels`, with its sign.

    Below 0 nothing fires unless `signed` (ON/OFF pairs). Backward, straight through: derivative 1 from half a threshold
    below the lowest spike to half a threshold above the highest, 0 beyond. Unsigned with one level, that is the window
    of the rectangular surrogate with slope 1.
    """
    return _CountSpikes.apply(quanta, levels, signed)


def integer_lif_step(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: Tensor, options: IntegerLIFOptions
) -> tuple[Tensor, Tensor]:
    """Return (spikes, potential after the reset) of one step; current and potential (B, C), decay and threshold (C,).

    charge   potential <- membrane_decay * potential + gain * current,  gain = 1 - membrane_decay if decay_input else 1
    fire     spikes = whole thresholds in |potential|, at most `levels`, with the sign of the potential (`count_spikes`)
    reset    "subtract": potential <- potential - threshold * spikes;  "zero": potential <- 0 where a spike was;
             "none": it stays, and is a leaky mean of the currents
    A neuron that may fire `levels` times within one token, each time losing one threshold. No gradient flows through
    the reset: straight through, it would cancel what the potential carries.
    """
    gain = 1 - membrane_decay if options.decay_input else torch.ones_like(membrane_decay)
    charged = membrane_decay * potential + gain * current
    spikes = count_spikes(charged / threshold, options.levels, options.signed)
    if options.reset == "none":
        return spikes, charged
    if options.reset == "zero":
        return spikes, torch.where(spikes == 0, charged, torch.zeros_like(charged))
    return spikes, charged - (threshold * spikes).detach()


def integer_lif(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: Tensor, options: IntegerLIFOptions
) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in the dtype of `current`, final potential (B, C)): `integer_lif_step` over time."""
    spikes = []
    for drive in current.to(potential.dtype).unbind(dim=1):
        spike, potential = integer_lif_step(drive, potential, membrane_decay, threshold, options)
        spikes.append(spike)
    return torch.stack(spikes, dim=1).to(current.dtype), potential
