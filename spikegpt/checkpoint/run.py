"""Checkpoints on disk: what a run folder holds, how it is written so that it survives a crash, how it is read back.

    RUN/config.json  run.yaml  tokenizer.json  metrics.jsonl  samples.txt
    RUN/checkpoints/step-00000250/   model.safetensors  config.json  tokenizer.json       (all that inference needs)
                                     training.safetensors  training.json                  (what resuming needs besides)
                                     manifest.json                                        (size and sha256 of each file)

A checkpoint is written under a temporary name, flushed to disk, and renamed. Reading tensors back: weights.py.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..common.errors import SpikegptError, Warn, warn_on_stderr
from ..common.files import sync_folder, write_atomically
from ..common.printing import command
from ..config import ModelConfig, TrainConfig
from ..config.train import BEFORE
from ..data.tokenizers import Tokenizer
from ..model.network import SpikeGPT
from ..model.quantised import FULL, packed
from .files import FORMAT, LOW_BIT, MANIFEST, check_format, fault_of, read_json, save_tensors, write_manifest
from .run_file import write_run_file
from .shipped import shipped_folder, shipped_near

_Found = TypeVar("_Found")
# of files that `import` reads
FOREIGN_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_PREFIX, _TEMPORARY = "step-", ".unfinished-"
# where a text or a teacher lies may change: what they hold is compared by digests
_PLACES = ("train.data", "train.teacher")


def save_checkpoint(
    run: Path,
    step: int,
    model: SpikeGPT,
    tokenizer: Tokenizer,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Write RUN/checkpoints/step-N with the model, and `tensors` and `state` for resuming; return its path.

    `weights` are the model's where this process does not hold them all.

    Raises:
        SpikegptError: the disk is full or not writable; what was there before is untouched.
    """
    folder = run / "checkpoints"
    unfinished, final = folder / f"{_TEMPORARY}{step:08d}", folder / f"{_PREFIX}{step:08d}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_model(unfinished, model, tokenizer, weights)
        save_tensors(unfinished / "training.safetensors", tensors)
        facts = {"format": FORMAT, "step": step, **state}
        write_atomically(unfinished / "training.json", json.dumps(facts, indent=1, allow_nan=False))
        write_manifest(unfinished)
        if final.exists():
            _remove(final)
        os.replace(unfinished, final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        before = latest_checkpoint(run)
        rest = f"the last good checkpoint is {before}" if before else "there is no earlier checkpoint"
        said = getattr(error, "strerror", None) or error
        raise SpikegptError(f"cannot write checkpoint {final}: {said}; {rest}") from error
    return final


def save_model(folder: Path, model: SpikeGPT, tokenizer: Tokenizer, weights: dict[str, Tensor] | None = None) -> None:
    """Write what inference needs into `folder`: model.safetensors, config.json, tokenizer.json.

    Raises:
        SpikegptError: the weights of a model of a few bits are none of those that codes stand for.
    """
    tensors, metadata = weights or model.state_dict(), {"format": "pt"}
    if model.config.weight_bits < FULL:
        try:
            tensors, matrices = packed(model, tensors)
        except ValueError as error:
            raise SpikegptError(f"cannot write {folder / 'model.safetensors'}: {error}") from None
        # one entry: the library writes several in any order, and a run ends byte for byte the same
        metadata = {LOW_BIT: json.dumps(matrices)}
    save_tensors(folder / "model.safetensors", tensors, metadata)
    write_atomically(folder / "config.json", json.dumps({"format": FORMAT, "model": model.config.to_dict()}, indent=1))
    tokenizer.save(folder / "tokenizer.json")


def prune_checkpoints(run: Path, keep: int, best_step: int | None, step: int) -> None:
    """Remove all but the best checkpoint and the newest `keep` of those up to `step`, and what crashes left unfinished.

    What lies beyond `step`, where the run is now, was damaged and passed over; it is replaced when its step comes.
    """
    for path in (run / "checkpoints").glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
    reached = [path for path in _checkpoints(run) if step_of(path) <= step]
    for path in reached[keep:]:
        if step_of(path) != best_step:
            with suppress(OSError):
                _remove(path)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint at one stroke: whoever reads the run finds it whole or not at all."""
    unfinished = checkpoint.with_name(_TEMPORARY + checkpoint.name)
    os.replace(checkpoint, unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)


def read_steadily(run: Path, read: Callable[[], _Found]) -> _Found:
    """Return what `read` makes of checkpoints of `run`; it is done again if a training replaces them meanwhile."""
    while True:
        before = _checkpoints(run)
        try:
            return read()
        except (SpikegptError, OSError):
            if _checkpoints(run) == before:
                raise


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders, newest first, whole or not."""
    found = (path for path in (run / "checkpoints").glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit())
    return sorted(found, key=step_of, reverse=True)


def has_checkpoints(run: Path) -> bool:
    """Whether a run has checkpoints, whole or not."""
    return bool(_checkpoints(run))


def latest_checkpoint(run: Path, warn: Warn = warn_on_stderr) -> Path | None:
    """Return the newest whole checkpoint of a run, or None; tells of each broken one that it passes over."""
    for checkpoint in _checkpoints(run):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        if checkpoint not in _checkpoints(run):
            # a training that goes on has removed it, and written a newer one
            return latest_checkpoint(run, warn)
        warn(f"{checkpoint} is not whole ({fault}); using the one before it")
    return None


class Located(NamedTuple):
    """Where a model lies: its folder, and the checkpoint that says how far its training came."""

    folder: Path
    newest: Path


def find_model(path: Path, warn: Warn = warn_on_stderr) -> Path:
    """Return the model folder that `path` means: itself, or the best checkpoint of a run, or else its newest.

    Or that of a model that comes with spikegpt, by its name.

    Raises:
        SpikegptError: there is none.
    """
    return locate(path, warn).folder


def locate(path: Path, warn: Warn = warn_on_stderr) -> Located:
    """Return the model folder that `path` means, as `find_model` does, and the newest checkpoint beside it."""
    path = shipped_folder(path) or path
    if (path / "model.safetensors").exists():
        fault = fault_of(path) if (path / MANIFEST).exists() else None
        if fault is not None:
            raise SpikegptError(f"checkpoint {path} is not whole: {fault}; use the one before it")
        return Located(path, path)
    if not path.is_dir():
        what = "is a file, not" if path.exists() else "is not"
        near = None if path.exists() else shipped_near(path)
        advice = "give that" if path.exists() else f"train one with: {command('train', '--out', path)}"
        advice = f"did you mean {near}, which comes with spikegpt?" if near else advice
        raise SpikegptError(f"{path} {what} the folder of a run or of a checkpoint; {advice}")
    latest = latest_checkpoint(path, warn)
    if latest is None:
        runs = sorted(str(inside) for inside in path.iterdir() if (inside / "config.json").is_file())
        if runs and not (path / "config.json").exists():
            raise SpikegptError(f"{path} is a folder of runs, name one: {', '.join(runs)}")
        raise SpikegptError(f"{path} holds no whole checkpoint; {_way_to_one(path)}")
    best = read_json(latest / "training.json").get("best") or {}
    if "step" in best:
        checkpoint = path / "checkpoints" / f"{_PREFIX}{best['step']:08d}"
        fault = fault_of(checkpoint)
        if fault is None:
            return Located(checkpoint, latest)
        if not checkpoint.exists() and latest != latest_checkpoint(path, warn=lambda message: None):
            # a training that goes on has found a better one
            return locate(path, warn)
        warn(f"the best checkpoint {checkpoint} is not whole ({fault}); using the newest")
    return Located(latest, latest)


def _way_to_one(run: Path) -> str:
    """What to do about a folder without a whole checkpoint."""
    if has_checkpoints(run):
        return "put one back, or train another run"
    if (run / "config.json").exists():
        return f"go on with its training: {command('train', '--resume', run)}"
    if run.is_dir() and any(path.suffix.lower() in FOREIGN_SUFFIXES for path in run.iterdir()):
        return f"its weights are of another kind; make a model of them: {command('import', run)}"
    return f"train it with: {command('train', '--out', run)}"


def run_of(path: Path) -> Path | None:
    """Return the run folder that `path` means, itself or the one that holds this checkpoint; None if there is none."""
    if (path / "checkpoints").is_dir():
        return path
    inside = path.resolve().parent
    return inside.parent if inside.name == "checkpoints" else None


def results_folder(run: Path) -> Path:
    """Return the folder that takes what is measured of a run: the run's own, never a checkpoint.

    Of a model that comes with spikegpt, where nothing is written, it is one in the working directory.
    """
    folder = shipped_folder(run)
    return (run_of(run) or run) if folder is None else Path("runs") / "measured" / folder.name


def progress_of(checkpoint: Path) -> tuple[int, int] | None:
    """Return (steps done, steps in all) of the training that wrote a checkpoint; None where nothing says so."""
    if not (checkpoint / "training.json").is_file():
        return None
    done, steps = read_json(checkpoint / "training.json").get("step"), training_of(checkpoint).get("steps")
    return (done, steps) if isinstance(done, int) and isinstance(steps, int) else None


def training_of(checkpoint: Path) -> dict[str, Any]:
    """Return the settings of the training that wrote a checkpoint; none where nothing says so."""
    if not (checkpoint / "training.json").is_file():
        return {}
    # checkpoints from before they held a copy of it
    config = read_json(checkpoint / "training.json").get("run") or _read_config_beside(checkpoint)
    return config.get("train") or {}


def _read_config_beside(checkpoint: Path) -> dict[str, Any]:
    run = run_of(checkpoint)
    return {} if run is None or not (run / "config.json").is_file() else read_json(run / "config.json")


def read_run_config(run: Path) -> dict[str, Any]:
    """Return {"model": ..., "train": ..., "corpus": ...} of a run folder, which its checkpoints were trained with.

    Raises:
        SpikegptError: it is missing or broken, or the newest checkpoint was trained with something else, which is
            named.
    """
    path = run / "config.json"
    values = read_json(path)
    check_format(values, path)
    for checkpoint in _checkpoints(run):
        if fault_of(checkpoint, ("config.json", "training.json")) is not None:
            continue
        kept, copy = read_json(checkpoint / "training.json").get("run"), checkpoint / "training.json"
        found: Any = values
        if kept is None:
            # from before checkpoints held a copy: they know the model alone
            copy = checkpoint / "config.json"
            found, kept = ({"model": _model_in(file).to_dict()} for file in (path, copy))
        if (difference := _first_difference(found, kept)) is not None:
            raise SpikegptError(f"{path}: {difference} in {copy}, which was trained with it; put that back")
        break
    return values


def configs_of(run: Path, values: dict[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """Return the configurations in `values`, what `read_run_config` gave; SpikegptError if they are none of a run."""
    try:
        return ModelConfig.from_dict(values["model"]), TrainConfig.from_dict({**BEFORE, **values["train"]})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpikegptError(f"{run / 'config.json'} does not describe a run: {error}") from None


def read_model_config(path: Path) -> ModelConfig:
    """Return the configuration in the config.json of a model folder or a run; SpikegptError if it is none."""
    check_format(read_json(path), path)
    return _model_in(path)


def _model_in(path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(read_json(path)["model"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpikegptError(f"{path} does not describe a model: {error}") from None


def _first_difference(found: Any, wanted: Any, name: str = "") -> str | None:
    """Say in which value two configurations differ first, by its dotted name; None if in none."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = ((key, f"{name}.{key}".lstrip(".")) for key in dict.fromkeys([*wanted, *found]))
        differences = (_first_difference(found.get(key), wanted.get(key), part) for key, part in parts)
        return next((difference for difference in differences if difference is not None), None)
    is_elsewhere = name in _PLACES and None not in (found, wanted)
    # as JSON: 1, 1.0 and true are equal in Python
    same = is_elsewhere or json.dumps(found) == json.dumps(wanted)
    return None if same else f"{name} is {json.dumps(found)}, but {json.dumps(wanted)}"


def make_room(run: Path) -> None:
    """Let a new run begin in the folder `run`: also where an earlier one ended before its first checkpoint.

    Raises:
        SpikegptError: the folder holds a run that can go on, a part of one, or a model.
    """
    if has_checkpoints(run):
        if not (run / "config.json").exists():
            raise SpikegptError(
                f"{run} holds the checkpoints of a run, but no config.json; put that back (its newest training.json "
                "has a copy as 'run'), or give another --out"
            )
        advice = f"continue it with: {command('train', '--resume', run)}, or give another --out"
        raise SpikegptError(f"{run} holds a run already; {advice}")
    if not (run / "config.json").exists():
        return
    if (run / "model.safetensors").exists() or "train" not in read_run_config(run):
        raise SpikegptError(f"{run} holds a model already; give another --out")
    warn_on_stderr(f"{run} holds a run that ended before its first checkpoint; a new one takes its place")
    for log in ("metrics.jsonl", "samples.txt"):
        (run / log).unlink(missing_ok=True)
    for folder in ("tensorboard", "wandb"):
        shutil.rmtree(run / folder, ignore_errors=True)


def create_run(run: Path, model: ModelConfig, train: TrainConfig, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """Write the tokenizer and the configuration of a new run, with `facts` about it and what made it.

    Raises:
        SpikegptError: the folder cannot be written.
    """
    made_with = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    values = {"format": FORMAT, "model": model.to_dict(), "train": train.to_dict(), **facts, "made_with": made_with}
    try:
        run.mkdir(parents=True, exist_ok=True)
        tokenizer.save(run / "tokenizer.json")
        write_run_file(run, model, train, facts.get("started_from"))
        # last: a folder that has it is a whole run
        write_atomically(run / "config.json", json.dumps(values, indent=1))
    except OSError as error:
        raise SpikegptError(f"cannot write the run folder {run}: {error}; give another --out") from error
