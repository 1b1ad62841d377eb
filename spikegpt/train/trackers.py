"""Where else a run is logged: TensorBoard and Weights & Biases, by Accelerate's trackers."""

import importlib.util
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import SpikegptError
from ..config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "spikegpt"


def check_trackers(config: TrainConfig) -> None:
    """Raise SpikegptError if what a run is to be logged with is not installed; Accelerate would pass it over."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise SpikegptError(f"{name} is not installed; pip install 'spikegpt[{name}]' or leave --log-with out")


def begin_tracking(
    accelerator: "Accelerator", config: TrainConfig, run: Path, facts: dict[str, Any], step: int
) -> Callable[[dict[str, float], int], None] | None:
    """Open the trackers of `config` after `step` steps; return what takes (name -> number, step), None without one.

    Args:
        facts: the run's configuration, for what can show it.
    """
    if not config.trackers:
        return None
    how: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": step + 1 if step else None}}
    if "wandb" in config.trackers and accelerator.is_main_process:
        shown = {name: facts[name] for name in ("model", "train")}
        how["wandb"] = {"name": run.absolute().name, "dir": str(run), "config": shown}
        how["wandb"] |= {"id": _wandb_id(run, step), "resume": "allow"}
    accelerator.init_trackers(PROJECT, init_kwargs=how)
    return lambda values, at: accelerator.log(values, step=at)


def _wandb_id(run: Path, step: int) -> str:
    """The name under which W&B knows a run, kept in its folder: one that goes on stays one run there."""
    kept = run / "wandb" / "id.txt"
    if step == 0 or not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(uuid.uuid4().hex)
    return kept.read_text()
