"""Small real runs: their configurations, their weights as one word, and how one is broken off."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.common.files import sha256_of
from spikegpt.config import SPIKING, ModelConfig, TrainConfig
from spikegpt.train import trainer as training
from spikegpt.train.loop import Loop

# how spikes enter RWKV-4, and another generation
BLOCKS = {spiking: {"spiking": spiking} for spiking in SPIKING}
BLOCKS |= {"rwkv7": {"spiking": "none", "mixer": "rwkv7", "head_size": 8}}
MODEL = ModelConfig(n_layer=2, n_embd=16, ctx_len=16)
TRAIN = TrainConfig(
    steps=12,
    batch_size=4,
    warmup_steps=2,
    save_every=4,
    eval_every=6,
    eval_tokens=256,
    sample_every=6,
    log_every=3,
    threads=1,
    precision="no",
    keep=2,
)


def without_newest(trained: Path, copy: Path) -> Path:
    """Copy a finished run of 12 steps to `copy`, with no checkpoint but that of step 8."""
    shutil.copytree(trained, copy)
    for path in (copy / "checkpoints").iterdir():
        if path.name != "step-00000008":
            shutil.rmtree(path)
    return copy


def weights_of(run: Path) -> str:
    return sha256_of(latest_checkpoint(run) / "model.safetensors")


class _Killed(Exception):
    """Stands for SIGKILL: nothing of ours runs after it."""


def break_off(
    monkeypatch, run: Path, cache: Path, after: int, model=MODEL, start: Path | None = None, **changes
) -> None:
    """Train into `run` and be killed after so many steps."""
    step = Loop.train_step

    def dying(self):
        if self.step == after:
            raise _Killed
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "train_step", dying)
        with pytest.raises(_Killed):
            training.train(model, dataclasses.replace(TRAIN, **changes), run, start=start, cache=cache, quiet=True)
