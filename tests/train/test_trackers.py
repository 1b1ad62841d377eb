"""A run is logged with TensorBoard and Weights & Biases too, by Accelerate's trackers."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.utils import LoggerType
from runs import MODEL, TRAIN

from spikegpt.common.errors import SpikegptError
from spikegpt.config import TrainConfig
from spikegpt.train import Callback, resume, train
from spikegpt.train import trackers as module


class _EndAt7(Callback):
    def on_step(self, facts):
        return facts.step == 7


def test_each_tracker_is_asked_for_once():
    assert TrainConfig(log_with=("wandb", "tensorboard"), tensorboard=True).trackers == ("wandb", "tensorboard")
    assert TrainConfig(tensorboard=True).trackers == ("tensorboard",)


def test_tensorboard_has_each_number_of_a_resumed_run_once_and_valid_apart_from_train(tmp_path, cache):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    config = dataclasses.replace(TRAIN, log_with=("tensorboard",), log_every=1)
    train(MODEL, config, run, cache=cache, quiet=True, callbacks=[_EndAt7()])
    resume(run, cache=cache, quiet=True)
    board = EventAccumulator(str(run / "tensorboard" / "spikegpt")).Reload()
    assert [scalar.step for scalar in board.Scalars("train/bits_per_byte")] == list(range(1, 13))
    assert [scalar.step for scalar in board.Scalars("valid/bits_per_byte")] == [6, 12]
    assert "train/losses/cross_entropy" in board.Tags()["scalars"]


@pytest.fixture
def wandb(monkeypatch):
    """Stands for the package, which needs an account: what it was begun with, and what it was given."""
    fake = ModuleType("wandb")
    fake.begun, fake.logged = [], []

    def init(**how):
        fake.begun.append(how)
        return SimpleNamespace(log=lambda values, step: fake.logged.append((step, values)), finish=lambda: None)

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: fake)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    return fake


def test_a_run_that_goes_on_stays_one_run_of_wandb(wandb, tmp_path, cache):
    run = tmp_path / "run"
    config = dataclasses.replace(TRAIN, log_with=("wandb",))
    train(MODEL, config, run, cache=cache, quiet=True, callbacks=[_EndAt7()])
    resume(run, cache=cache, quiet=True)
    first, second = wandb.begun
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["project"] == "spikegpt"
    assert first["config"]["model"]["n_embd"] == 16
    assert [step for step, values in wandb.logged if "valid/bits_per_byte" in values] == [6, 12]
    train(MODEL, config, tmp_path / "other" / "run", cache=cache, quiet=True)
    assert wandb.begun[2]["id"] != first["id"]


def test_a_tracker_that_is_not_installed_is_said_before_the_folder_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpikegptError, match=r"wandb is not installed; pip install 'spikegpt\[wandb\]'"):
        train(MODEL, dataclasses.replace(TRAIN, log_with=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
