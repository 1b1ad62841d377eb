"""What `commitment_error` computes, in plain torch, written to be read. Gradients come from torch's autograd."""

import torch
from torch import Tensor


def commitment_error(current: Tensor, threshold: Tensor, levels: int, signed: bool) -> Tensor:
    """Return sum((q - target)^2) / sum(q^2), in thresholds q of current (B, T, C), which are constants (C,).

    The target is a constant too: the middle of the currents that emit as many spikes, n + 1/2 thresholds for n of them,
    and 0 for none. Currents of the sign that never fires are no part of it.
    """
    quanta = current.float() / threshold.detach()
    quanta = quanta.abs() if signed else quanta.clamp(min=0)
    spikes = torch.floor(quanta.detach()).clamp(max=levels)
    target = torch.where(spikes > 0, spikes + 0.5, 0)
    return (quanta - target).square().sum() / quanta.square().sum().clamp(min=1e-30)
