"""Checkpoints on disk: what a run folder holds, how it is written so that it survives a crash, how it is read back.

    RUN/config.json  tokenizer.json  metrics.jsonl  samples.txt
    RUN/checkpoints/step-00000250/   model.safetensors  config.json  tokenizer.json       (all that inference needs)
                                     training.safetensors  training.json                  (what resuming needs besides)
                                     manifest.json                                        (size and sha256 of each file)

A checkpoint is written under a temporary name, flushed to disk, and renamed. Reading tensors back: weights.py.
"""

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..common.errors import SpikegptError, Warn, warn_on_stderr
from ..common.files import sha256_of, sync_folder, write_atomically
from ..config import ModelConfig, TrainConfig
from ..data.tokenizers import Tokenizer
from ..model.network import SpikeGPT

FORMAT = 1
MANIFEST = "manifest.json"
_PREFIX, _TEMPORARY = "step-", ".unfinished-"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; SpikegptError if it is missing or broken."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpikegptError(f"{path} does not exist; give the folder of a run or of a checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpikegptError(f"{path} is not JSON ({error}); restore it or use another checkpoint") from None
    if not isinstance(values, dict):
        raise SpikegptError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def check_format(values: dict[str, Any], path: Path) -> None:
    """Raise SpikegptError unless `values`, read from `path`, is of a format that this version reads."""
    found = values.get("format")
    if not isinstance(found, int):
        raise SpikegptError(f"{path} has no format number; it was not written by spikegpt")
    if found > FORMAT:
        raise SpikegptError(f"{path} has format {found}, this spikegpt reads up to {FORMAT}; install a newer spikegpt")


def save_checkpoint(
    run: Path, step: int, model: SpikeGPT, tokenizer: Tokenizer, tensors: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write RUN/checkpoints/step-N with the model, and `tensors` and `state` for resuming; return its path.

    Raises:
        SpikegptError: the disk is full or not writable; what was there before is untouched.
    """
    folder = run / "checkpoints"
    unfinished, final = folder / f"{_TEMPORARY}{step:08d}", folder / f"{_PREFIX}{step:08d}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _write_files(unfinished, model, tokenizer, tensors, {"format": FORMAT, "step": step, **state})
        if final.exists():
            shutil.rmtree(final)
        os.replace(unfinished, final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        before = latest_checkpoint(run)
        rest = f"the last good checkpoint is {before}" if before else "there is no earlier checkpoint"
        raise SpikegptError(f"cannot write checkpoint {final}: {error}; {rest}") from error
    return final


def _write_files(
    folder: Path, model: SpikeGPT, tokenizer: Tokenizer, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    save_model(folder, model, tokenizer)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / "training.safetensors"
    )
    write_atomically(folder / "training.json", json.dumps(state, indent=1))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    manifest = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    write_atomically(folder / MANIFEST, json.dumps({"format": FORMAT, "files": manifest}, indent=1))


def save_model(folder: Path, model: SpikeGPT, tokenizer: Tokenizer) -> None:
    """Write what inference needs into `folder`: model.safetensors, config.json, tokenizer.json."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_atomically(folder / "config.json", json.dumps({"format": FORMAT, "model": model.config.to_dict()}, indent=1))
    tokenizer.save(folder / "tokenizer.json")


def prune_checkpoints(run: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best, and what crashes left unfinished."""
    for path in (run / "checkpoints").glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in _checkpoints(run)[keep:]:
        if step_of(path) != best_step:
            shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders, newest first, whole or not."""
    found = (path for path in (run / "checkpoints").glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit())
    return sorted(found, key=step_of, reverse=True)


def fault_of(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None if every file is there, whole, and unchanged."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
        check_format(manifest, checkpoint / MANIFEST)
    except SpikegptError as error:
        return str(error)
    for name, wanted in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, written were {wanted['bytes']}"
        if sha256_of(path) != wanted["sha256"]:
            return f"{name} has changed since it was written (sha256 differs)"
    return None


def latest_checkpoint(run: Path, warn: Warn = warn_on_stderr) -> Path | None:
    """Return the newest whole checkpoint of a run, or None; tells of each broken one that it passes over."""
    for checkpoint in _checkpoints(run):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        warn(f"{checkpoint} is not whole ({fault}); using the one before it")
    return None


def find_model(path: Path, warn: Warn = warn_on_stderr) -> Path:
    """Return the model folder that `path` means: itself, or the best checkpoint of a run, or else its newest.

    Raises:
        SpikegptError: there is none.
    """
    if (path / "model.safetensors").exists():
        fault = fault_of(path) if (path / MANIFEST).exists() else None
        if fault is not None:
            raise SpikegptError(f"checkpoint {path} is not whole: {fault}; use the one before it")
        return path
    if not path.is_dir():
        raise SpikegptError(
            f"{path} is not the folder of a run or of a checkpoint; train one with: spikegpt train --out {path}"
        )
    latest = latest_checkpoint(path, warn)
    if latest is None:
        raise SpikegptError(f"{path} holds no whole checkpoint; train it with: spikegpt train --out {path}")
    best = read_json(latest / "training.json").get("best") or {}
    if "step" in best:
        checkpoint = path / "checkpoints" / f"{_PREFIX}{best['step']:08d}"
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        warn(f"the best checkpoint {checkpoint} is not whole ({fault}); using the newest")
    return latest


def read_run_config(run: Path) -> dict[str, Any]:
    """Return {"model": ..., "train": ...} of a run folder."""
    values = read_json(run / "config.json")
    check_format(values, run / "config.json")
    return values


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
        # last: a folder that has it is a whole run
        write_atomically(run / "config.json", json.dumps(values, indent=1))
    except OSError as error:
        raise SpikegptError(f"cannot write the run folder {run}: {error}; give another --out") from error
