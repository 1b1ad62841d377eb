"""The network: one class, spike-driven, as published, and dense."""

from .network import ModelOutput, SpikeGPT, State

__all__ = ["ModelOutput", "SpikeGPT", "State"]
