"""Sizes and optimizer settings by name, as data."""

from typing import Any

from .model import ModelConfig, Spiking
from .train import TrainConfig
from .values import check

# the published optimiser settings: github.com/ridgerchu/SpikeGPT, src/train.py; the paper's 500 warm-up steps
_PUBLISHED = {"batch_size": 12, "lr": 6e-4, "lr_final": 1e-5, "warmup_steps": 500, "adam_eps": 4e-9, "l2wrap": 1e-4}

# what small models learn best by within some thousand steps, dense and spike-driven: benchmarks/recipe.py
_RECIPE: dict[str, Any] = {
    "optimizer": "muon",
    "lr": 6e-3,
    "muon_lr": 0.03,
    "muon_momentum": 0.9,
    "schedule": "wsd",
    "decay_share": 0.97,
}
# and the spike-driven ones besides: taught by themselves without their neurons
_SPIKE_DRIVEN: dict[str, Any] = {"self_teacher": 1.0, "commitment": 1.0}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # about 1M parameters with bytes: the demo
    "tiny": {
        "model": {"n_layer": 4, "n_embd": 128, "ctx_len": 128, "vocab_size": 256},
        "train": {"steps": 600, **_RECIPE},
        "spike_driven": _SPIKE_DRIVEN,
    },
    # about 5M
    "small": {
        "model": {"n_layer": 6, "n_embd": 256, "ctx_len": 256, "vocab_size": 256},
        "train": {"steps": 2000, "batch_size": 8, "warmup_steps": 100, **_RECIPE},
        "spike_driven": _SPIKE_DRIVEN,
    },
    # the paper's enwik8 model; its 46.1M parameters imply a vocabulary of about 5458 characters
    "spikegpt-46m": {
        "model": {"n_layer": 12, "n_embd": 512, "ctx_len": 1024, "vocab_size": 5458, "spiking_head": True},
        "train": {"steps": 100_000, **_PUBLISHED},
    },
    # the released OpenWebText model, with the GPT-NeoX 20B vocabulary
    "spikegpt-216m": {
        "model": {"n_layer": 18, "n_embd": 768, "ctx_len": 1024, "vocab_size": 50277, "spiking_head": True},
        "train": {"steps": 400_000, **_PUBLISHED},
    },
}

# of a spike-driven model that its dense beginning teaches: what measured best in benchmarks/recipe.py
HEALING: dict[str, Any] = {
    "lr": 8e-3,
    "teacher_weight": 0.9,
    "teacher_features": 3.0,
    "commitment": 6.0,
    "anneal": 0.0,
    # thresholds are fitted within the whole budget
    "synop_warmup": 0.0,
}


def model_preset(name: str, **changes) -> ModelConfig:
    """Return the ModelConfig of a preset, with `changes` applied; ValueError if no preset has this name."""
    return ModelConfig(**{**_preset(name)["model"], **changes})


def train_preset(name: str, spiking: Spiking = "none", **changes) -> TrainConfig:
    """Return the TrainConfig of a preset for a model that is `spiking` so, with `changes` applied.

    Raises:
        ValueError: no preset has this name.
    """
    preset = _preset(name)
    own = preset.get("spike_driven", {}) if spiking == "input" else {}
    return TrainConfig(**{**preset["train"], **own, **changes})


def _preset(name: str) -> dict[str, dict[str, Any]]:
    check(isinstance(name, str) and name in PRESETS, f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
