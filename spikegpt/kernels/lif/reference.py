"""The leaky integrate-and-fire neuron, defined in plain torch and written to be read: one loop over time.

Gradients come from torch's autograd, so they are independent of the hand-written backward passes of the fast versions,
which are tested against this file. Conventions of SpikingJelly's `LIFNode`.
"""

import torch
from torch import Tensor

from ..surrogates import heaviside
from .options import LIFOptions


def lif_step(current: Tensor, potential: Tensor, membrane_decay: Tensor, options: LIFOptions) -> tuple[Tensor, Tensor]:
    """Return (spikes, membrane potential after the reset) of one step; every tensor is (B, C), the decay (C,).

    charge   potential <- membrane_decay * potential + (1 - membrane_decay) * reset_potential + gain * current
             with gain = 1 - membrane_decay if decay_input else 1
    fire     spike = potential >= threshold
    reset    "zero": potential <- reset_potential at a spike; "subtract": potential <- potential - threshold * spike;
             "none": it stays
    """
    gain = 1 - membrane_decay if options.decay_input else torch.ones_like(membrane_decay)
    charged = membrane_decay * potential + gain * current
    if options.reset_potential != 0.0:
        charged = charged + (1 - membrane_decay) * options.reset_potential
    spikes = heaviside(charged - options.threshold, options.surrogate, options.slope)
    if options.reset == "none":
        return spikes, charged
    resetting = spikes.detach() if options.detach_reset else spikes
    if options.reset == "zero":
        return spikes, (1 - resetting) * charged + resetting * options.reset_potential
    return spikes, charged - options.threshold * resetting


def lif(current: Tensor, potential: Tensor, membrane_decay: Tensor, options: LIFOptions) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in the dtype of `current`, final membrane potential (B, C)): `lif_step` over time.

    current (B, T, C); potential (B, C) and membrane_decay (C,) in float32, or float64 with a float64 current.
    """
    spikes = []
    for drive in current.to(potential.dtype).unbind(dim=1):
        spike, potential = lif_step(drive, potential, membrane_decay, options)
        spikes.append(spike)
    return torch.stack(spikes, dim=1).to(current.dtype), potential
