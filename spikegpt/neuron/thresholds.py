"""Thresholds from currents: at which a share of neurons fires, and with which spikes best stand for real numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

from .lif import LIF

FITTED_CURRENTS = 2048
# in units of a channel's root mean square current
TRIED_THRESHOLDS = torch.logspace(-1.3, 1.0, 29)


class Candidates(NamedTuple):
    """What each of K thresholds makes of the currents of C channels, and their mean square, energy (C,)."""

    thresholds: Tensor
    errors: Tensor
    """(K, C) mean squared error of spikes at their worth"""
    rates: Tensor
    """(K, C) share of the currents that fire"""
    energy: Tensor

    def least(self, loss: Tensor) -> Tensor:
        """Return the threshold (C,) of the least `loss` (K, C)."""
        return self.thresholds.gather(0, loss.argmin(dim=0, keepdim=True)).squeeze(0)


def threshold_of_rate(current: Tensor, rate: float, signed: bool) -> Tensor:
    """Return the threshold (scalar) at which `rate` of all currents fire at once; if `signed`, negative ones too."""
    driven = (current.abs() if signed else current).flatten()
    return driven.kthvalue(max(round((1 - rate) * driven.numel()), 1)).values


def tried_thresholds(currents: Tensor, neuron: LIF) -> Candidates:
    """Return what TRIED_THRESHOLDS make of currents (N, C); where nothing arrives, the threshold is 1 and no spike."""
    currents = currents[:: -(-len(currents) // FITTED_CURRENTS)]
    energy = currents.square().mean(0)
    levels, signed = neuron.config.levels, neuron.config.signed
    found = []
    for factor in TRIED_THRESHOLDS:
        threshold = torch.where(energy > 0, factor * energy.sqrt(), 1.0)
        counts = torch.floor(currents.abs() / threshold).clamp(max=levels)
        spikes = torch.where(currents < 0, float(signed), 1.0) * currents.sign() * counts
        error = (currents - (1 + 1 / levels) * threshold * spikes).square().mean(0)
        found.append((threshold, error, (spikes != 0).float().mean(0)))
    thresholds, errors, rates = map(torch.stack, zip(*found, strict=True))
    return Candidates(thresholds, errors, rates, energy)


def best_thresholds(currents: Tensor, neuron: LIF) -> Tensor:
    """Return the thresholds (C,) at which spikes of `currents` (N, C) err least at their worth, 1 without any."""
    tried = tried_thresholds(currents, neuron)
    return tried.least(tried.errors)
