"""The network: one class, spike-driven, as published, and dense; a file per generation in mixers/."""

from .mixers import MIXERS, Mixed, Mixer, NeuronFactory, Site
from .network import ModelOutput, PlacedSite, SpikeGPT
from .state import State

__all__ = ["MIXERS", "Mixed", "Mixer", "ModelOutput", "NeuronFactory", "PlacedSite", "Site", "SpikeGPT", "State"]
