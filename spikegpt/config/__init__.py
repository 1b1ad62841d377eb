"""Frozen configurations of models, neurons and training, and the presets. Standard library only."""

from .config import (
    INPUT_NEURON,
    PRESETS,
    SPIKING,
    ClassifyConfig,
    ModelConfig,
    NeuronConfig,
    TrainConfig,
    default_neuron,
    model_preset,
    train_preset,
)

__all__ = [
    "INPUT_NEURON",
    "PRESETS",
    "SPIKING",
    "ClassifyConfig",
    "ModelConfig",
    "NeuronConfig",
    "TrainConfig",
    "default_neuron",
    "model_preset",
    "train_preset",
]
