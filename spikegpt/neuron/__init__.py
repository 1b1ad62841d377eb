"""Neurons as modules: our LIF, and adapters for other libraries' neurons."""

from .lif import LIF, SnnTorchNeuron, SpikingJellyNeuron, check_alphabet, heaviside, verified_spikes

__all__ = ["LIF", "SnnTorchNeuron", "SpikingJellyNeuron", "check_alphabet", "heaviside", "verified_spikes"]
