"""spikegpt: train spiking language models, and compare them with their dense RWKV twin.

Importing this loads nothing heavy. The verbs are functions of the wings of their name: `from spikegpt.train import
train`, `from spikegpt.generate import generate`.
"""

import importlib
from typing import TYPE_CHECKING

from .common.version import __version__

# name in the shop window -> module that holds it; loaded when first asked for, so that the command line starts at once
_HOME = {
    "ModelConfig": "config",
    "NeuronConfig": "config",
    "SamplingConfig": "config",
    "TrainConfig": "config",
    "PRESETS": "config",
    "model_preset": "config",
    "train_preset": "config",
    "SpikegptError": "common.errors",
    "event_wkv": "kernels",
    "integer_lif": "kernels",
    "lif": "kernels",
    "wkv": "kernels",
    "LIF": "neuron",
    "SnnTorchNeuron": "neuron",
    "SpikingJellyNeuron": "neuron",
    "SpikeGPT": "model",
    "replaced": "model",
    "silenced": "model",
    "stimulated": "model",
    "trace": "model",
    "Engine": "generate",
    "load_model": "checkpoint",
    "load_tokenizer": "data.tokenizers",
    "prepare": "data",
    "evaluate_stream": "evaluate",
    "evaluate_windows": "evaluate",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .checkpoint import load_model
    from .common.errors import SpikegptError
    from .config import PRESETS, ModelConfig, NeuronConfig, SamplingConfig, TrainConfig, model_preset, train_preset
    from .data import prepare
    from .data.tokenizers import load_tokenizer
    from .evaluate import evaluate_stream, evaluate_windows
    from .generate import Engine
    from .kernels import event_wkv, integer_lif, lif, wkv
    from .model import SpikeGPT, replaced, silenced, stimulated, trace
    from .neuron import LIF, SnnTorchNeuron, SpikingJellyNeuron


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'spikegpt' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
