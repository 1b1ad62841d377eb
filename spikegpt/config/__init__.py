"""Frozen configurations of models, neurons, training, sampling and serving, and the presets. Standard library only."""

from .model import SPIKING, ModelConfig, Spiking, default_neuron
from .neuron import INPUT_NEURON, NeuronConfig
from .presets import HEALING, PRESETS, model_preset, train_preset
from .sampling import SamplingConfig
from .serving import ServeConfig
from .train import ClassifyConfig, TrainConfig
from .values import known_keys

__all__ = [
    "HEALING",
    "INPUT_NEURON",
    "PRESETS",
    "SPIKING",
    "ClassifyConfig",
    "ModelConfig",
    "NeuronConfig",
    "SamplingConfig",
    "ServeConfig",
    "Spiking",
    "TrainConfig",
    "default_neuron",
    "known_keys",
    "model_preset",
    "train_preset",
]
