"""The network: one class, spike-driven, as published, and dense; a file per generation in mixers/."""

from .interventions import replaced, silenced, stimulated
from .mixers import MIXERS, Mixed, Mixer, NeuronFactory, Site
from .network import ModelOutput, PlacedSite, SpikeGPT
from .state import State
from .tracing import Trace, trace

__all__ = [
    "MIXERS",
    "Mixed",
    "Mixer",
    "ModelOutput",
    "NeuronFactory",
    "PlacedSite",
    "Site",
    "SpikeGPT",
    "State",
    "Trace",
    "replaced",
    "silenced",
    "stimulated",
    "trace",
]
