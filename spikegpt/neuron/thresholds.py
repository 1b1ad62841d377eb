"""Thresholds from currents: at which a share of neurons fires, and with which spikes best stand for real numbers."""

import torch
from torch import Tensor

from .lif import LIF

FITTED_CURRENTS = 2048
# in units of a channel's root mean square current
TRIED_THRESHOLDS = torch.logspace(-1.3, 0.6, 24)


def threshold_of_rate(current: Tensor, rate: float, signed: bool) -> Tensor:
    """Return the threshold (scalar) at which `rate` of all currents fire at once; if `signed`, negative ones too."""
    driven = (current.abs() if signed else current).flatten()
    return driven.kthvalue(max(round((1 - rate) * driven.numel()), 1)).values


def best_thresholds(currents: Tensor, neuron: LIF) -> Tensor:
    """Return the thresholds (C,) at which spikes of `currents` (N, C) err least at their worth, 1 without any."""
    currents = currents[:: -(-len(currents) // FITTED_CURRENTS)]
    size = currents.square().mean(0).sqrt()
    best, least = torch.ones_like(size), torch.full_like(size, torch.inf)
    levels, signed = neuron.config.levels, neuron.config.signed
    for factor in TRIED_THRESHOLDS:
        threshold = factor * size
        counts = torch.floor(currents.abs() / threshold).clamp(max=levels)
        spikes = torch.where(currents < 0, float(signed), 1.0) * currents.sign() * counts
        error = (currents - (1 + 1 / levels) * threshold * spikes).square().mean(0)
        # where nothing arrives, the error is not a number and never smaller
        best, least = torch.where(error < least, threshold, best), torch.where(error < least, error, least)
    return best
