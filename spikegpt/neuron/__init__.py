"""Neurons as modules: our LIF, and adapters for SpikingJelly's and snnTorch's.

Every neuron here maps a current (B, T, C) and a state to spikes (B, T, C) and the state after the last token, so that
a text may be read at once, in chunks, or token by token.
"""

from ..kernels import firing_rate, rescale_columns
from ..kernels.surrogates import heaviside
from .adapters import SnnTorchNeuron, SpikingJellyNeuron
from .lif import LIF, check_alphabet, verified_spikes
from .thresholds import best_thresholds, threshold_of_rate

__all__ = [
    "LIF",
    "SnnTorchNeuron",
    "SpikingJellyNeuron",
    "best_thresholds",
    "check_alphabet",
    "firing_rate",
    "heaviside",
    "rescale_columns",
    "threshold_of_rate",
    "verified_spikes",
]
