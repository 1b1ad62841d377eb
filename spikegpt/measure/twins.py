"""The dense twin of a run: found beside it, or trained."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from ..checkpoint.run import configs_of, latest_checkpoint, read_run_config, step_of
from ..checkpoint.shipped import from_everywhere, shipped_folder, shipped_names
from ..common.errors import SpikegptError
from ..common.printing import command, one_line
from ..config import ModelConfig, TrainConfig
from ..train.basis import with_absolute_paths
from ..train.convert import read_model_config
from ..train.stop_signals import stop_now
from ..train.trainer import resume, train

# settings that a twin may have of its own: they do not touch what is learned, or act on spikes only
OWN_SETTINGS = {
    "threads",
    "eval_every",
    "eval_tokens",
    "sample_every",
    "save_every",
    "keep",
    "log_every",
    "log_with",
    "tensorboard",
}
_SPIKE_SETTINGS = {
    "firing_rate_target",
    "firing_rate_weight",
    "synop_budget",
    "synop_weight",
    "synop_warmup",
    "anneal",
    "learn_in",
    "verify_spikes",
    "commitment",
}
# a pupil's twin learns from the text alone
_TEACHING_SETTINGS = {"teacher", "teacher_weight", "teacher_loss", "teacher_features", "self_teacher"}
# of a model: what only its spikes know
NEURON_SETTINGS = {"neuron", "hidden_levels", "spiking_head", "shared_neurons", "state_neurons", "binary_embedding"}


def find_twin(run: Path) -> Path | None:
    """Return a run beside `run` that is its dense twin (same sizes, text, seed and training); None without one."""
    config = read_run_config(run)
    model, training = configs_of(run, config)
    wanted = _twin_key(model.twin(), training, config)
    for folder in sorted(run.resolve().parent.iterdir()):
        if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
            continue
        try:
            values = read_run_config(folder)
            # imported models have not been trained as runs are
            if "train" not in values:
                continue
            model, training = configs_of(folder, values)
        except SpikegptError as error:
            _say(f"note: {folder} is passed over in the search for a twin: {error}")
            continue
        if model.spiking == "none" and _twin_key(model, training, values) == wanted:
            return folder
    return None


def _twin_key(model: ModelConfig, training: TrainConfig, run_config: dict[str, Any]) -> tuple[Any, ...]:
    """What must be equal in a model and its twin."""
    sizes = {name: value for name, value in model.to_dict().items() if name not in NEURON_SETTINGS}
    own = OWN_SETTINGS | _SPIKE_SETTINGS | _TEACHING_SETTINGS
    # older runs hold the paths that they were given
    shared = {name: value for name, value in with_absolute_paths(training).to_dict().items() if name not in own}
    text = (run_config.get("corpus") or {}).get("text_sha256")
    # a text may have been moved
    shared["data"] = text or shared["data"]
    start = run_config.get("started_from") and str(from_everywhere(Path(run_config["started_from"])))
    return sizes, shared, start


def make_twin(run: Path, *, cache: Path | None = None, quiet: bool = False, device: str = "auto") -> Path:
    """Return the folder of the finished dense twin of `run`: found beside it, or trained into RUN-twin.

    Raises:
        SpikegptError: `run` is dense itself, its text is gone, or the device is not there.
        KeyboardInterrupt, SystemExit: training was interrupted, by SIGINT or another signal.
    """
    if (shipped := shipped_folder(run)) is not None:
        return _shipped_twin(shipped)
    config = read_run_config(run)
    model, own_training = configs_of(run, config)
    if model.spiking == "none":
        raise SpikegptError(f"{run} is dense; --twin needs a spiking run")
    # a twin is nobody's pupil
    training = dataclasses.replace(own_training, teacher=None, self_teacher=0.0)
    start = config.get("started_from") and Path(config["started_from"])
    if start and read_model_config(start).spiking != "none":
        raise SpikegptError(
            f"{run} began with the spiking weights of {start}, which have no dense twin; "
            f"name a run: {command('compare', run)} RUN"
        )
    twin = find_twin(run)
    if twin is None:
        twin = run.resolve().parent / f"{run.resolve().name}-twin"
        _say(f"training the dense twin of {run} into {twin}")
        done = train(model.twin(), training, twin, start=start, cache=cache, quiet=quiet, device=device)
    elif _last_step(twin) < training.steps:
        _say(f"finishing the dense twin {twin}")
        done = resume(twin, cache=cache, quiet=quiet, device=device)
    else:
        return twin
    if done.interrupted:
        _say(f"the training of the twin was interrupted; continue it with: {command('train', '--resume', twin)}")
        stop_now(done.signal)
    return twin


def _shipped_twin(folder: Path) -> Path:
    """The twin that came with a model."""
    twin = f"{folder.name}-twin"
    if twin not in shipped_names():
        there = ", ".join(shipped_names())
        raise SpikegptError(f"no dense twin of {folder.name} comes with spikegpt; what comes is {there}")
    return Path(twin)


def _last_step(run: Path) -> int:
    latest = latest_checkpoint(run)
    return 0 if latest is None else step_of(latest)


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)
