"""The verbs `train` and `convert`. Their flags are read twice: first those that decide the defaults of the others."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro import MISSING
from tyro.conf import OmitArgPrefixes

from ..common.printing import command, one_line
from ..config import HEALING, PRESETS, SPIKING, ModelConfig, TrainConfig, model_preset, train_preset
from ..config.effects import idle_in_training
from .idle import warn_of_idle
from .options import Convert, Moved, Start, Train, Training
from .parsing import UsageError, parse

if TYPE_CHECKING:
    from ..train.trainer import TrainResult

# what `train --help` shows
EVERYDAY = (
    "--preset",
    "--data",
    "--out",
    "--spiking",
    "--from",
    "--resume",
    "--tokenizer",
    "--steps",
    "--batch-size",
    "--device",
)
CONVERT_EVERYDAY = ("--data", "--out", "--steps", "--synop-budget", "--lr", "--teacher-features", "--device")


def train_verb(arguments: list[str]) -> int:
    start, _ = parse(Start, "train", arguments, return_unknown_args=True, add_help=False)
    defaults = _train_defaults(start)
    options = _parse(arguments, start, defaults)
    from ..train import trainer as train

    if options.resume is not None:
        moved, others = parse(Moved, "train", arguments, return_unknown_args=True)
        if others:
            given = ", ".join(other.partition("=")[0] for other in others if other.startswith("--"))
            raise UsageError(f"--resume goes on with the run's own configuration; leave out {given}")
        result = train.resume(
            options.resume,
            data=moved.data,
            teacher=moved.teacher,
            **_how(options),
        )
    else:
        _warn(options, defaults, options.from_)
        out = options.out or Path("runs") / _name_of(options)
        result = train.train(
            options.model,
            options.train,
            out,
            start=options.from_,
            **_how(options),
        )
    return _tell(result, options.json)


def _name_of(options: Train) -> str:
    """The name of a run that was given none."""
    from ..checkpoint.run_file import NAME

    if options.config is not None and options.config.name == NAME:
        return f"{options.config.resolve().parent.name}-again"
    name = options.from_.resolve().name + "-tuned" if options.from_ else options.preset
    return f"{options.config.stem if options.config else name}-{options.model.spiking}"


def convert_verb(arguments: list[str]) -> int:
    """As `train --from RUN --spiking input --teacher RUN` with the run's own text."""
    unread = Convert(run=MISSING, model=ModelConfig(), train=TrainConfig(**HEALING))
    options = parse(OmitArgPrefixes[Convert], "convert", arguments, CONVERT_EVERYDAY, default=unread)
    if options.model.spiking != "input":
        raise UsageError("what is converted becomes --spiking input; for another block: train --from RUN --spiking ...")
    from ..checkpoint.run import run_of
    from ..checkpoint.shipped import shipped_folder
    from ..train import trainer as train
    from ..train.convert import healing_of

    is_told = any(word.partition("=")[0] == "--data" for word in arguments)
    is_model = options.run.is_dir() or shipped_folder(options.run) is not None
    if not is_told and is_model and run_of(options.run) is None:
        raise UsageError(f"{options.run} is a model, not a run with a text of its own; give the text with --data")
    _check_mixer(options.run, parse(Start, "convert", arguments, return_unknown_args=True, add_help=False)[0])
    model, training = healing_of(options.run)
    defaults = Convert(run=options.run, model=model, train=training)
    options = parse(OmitArgPrefixes[Convert], "convert", arguments, default=defaults)
    _warn(options, defaults, options.run)
    result = train.train(
        options.model,
        options.train,
        options.out or Path("runs") / f"{options.run.resolve().name}-spiking",
        start=options.run,
        **_how(options),
    )
    return _tell(result, options.json)


def _how(options: Training) -> dict[str, Any]:
    """What `train` and `resume` want to know beside what is trained."""
    return {"cache": options.cache, "quiet": options.json, "device": options.device, "shard": options.shard}


def _tell(result: "TrainResult", as_json: bool) -> int:
    """Say how a training ended, and how to go on; return the exit status."""
    from ..train.stop_signals import exit_status

    status = exit_status(result.signal) if result.interrupted else 0
    if not result.is_main:
        return status
    if as_json:
        valid = result.valid.to_dict() if result.valid else None
        print(
            json.dumps({"run": str(result.run), "step": result.step, "interrupted": result.interrupted, "valid": valid})
        )
    elif result.interrupted:
        print(f"stopped after step {result.step}, saved; continue with: {command('train', '--resume', result.run)}")
    else:
        print(f"done: {one_line(result.run)}")
        for verb in ("generate", "evaluate"):
            print(f"  {command(verb, result.run)}")
    return status


def _parse(arguments: list[str], start: Start, defaults: Train) -> Train:
    from ..model.mixers import MIXERS

    try:
        options = parse(OmitArgPrefixes[Train], "train", arguments, EVERYDAY, default=defaults)
    except UsageError as error:
        if start.spiking == "none" and "model.neuron:" in str(error):
            raise UsageError("a dense model has no neurons: leave out what --spiking none cannot use") from error
        raise
    if options.model.mixer not in MIXERS:
        raise UsageError(f"--mixer is {options.model.mixer!r}; known: {', '.join(MIXERS)}")
    return options


def _warn(given: Train | Convert, defaults: Train | Convert, start: Path | None) -> None:
    """Warn of what differs from the defaults, but changes nothing in this training, which begins with `start`."""
    from ..train.convert import read_model_config

    idle = idle_in_training(
        given.model,
        given.train,
        begins_with=read_model_config(start).spiking if start else None,
        has_rows=given.train.text_column == defaults.train.text_column or _has_rows(given.train.data),
    )
    pairs = ((given.model, defaults.model), (given.model.neuron, defaults.model.neuron), (given.train, defaults.train))
    for config, default in pairs:
        warn_of_idle(config, vars(default), idle)


def _has_rows(data: tuple[str, ...]) -> bool:
    from ..data.documents import ROW_SUFFIXES, suffix_of
    from ..data.folders import files_of
    from ..data.sources import source_paths

    files = files_of(source_paths(data) or [], warn=lambda message: None)
    return any(suffix_of(file) in ROW_SUFFIXES for file in files)


def _train_defaults(start: Start) -> Train:
    """The defaults that `--config`, `--preset`, `--from` and `--spiking` ask for, so that other flags change those."""
    if start.config is None:
        return _defaults_without_file(start)
    from ..checkpoint.run_file import read_run_file

    file = read_run_file(start.config)
    if file.preset not in (None, *PRESETS):
        raise UsageError(f"{start.config}: preset is {file.preset!r}; known: {', '.join(PRESETS)}")
    # flags come before the file
    model, training = dict(file.model), dict(file.train)
    if start.spiking not in (None, model.get("spiking")):
        # each block has its own neuron
        model.pop("neuron", None)
    if _is_taught_otherwise(start):
        training.pop("self_teacher", None)
    model |= {name: value for name in ("spiking", "mixer") if (value := getattr(start, name)) is not None}
    begun = start
    if start.preset is None and start.from_ is None:
        begun = dataclasses.replace(start, preset=file.preset, from_=file.start)
    begun = dataclasses.replace(
        begun,
        spiking=model.get("spiking"),
        mixer=model.get("mixer"),
        teacher=start.teacher or training.get("teacher"),
        carry_state=start.carry_state or bool(training.get("carry_state")),
        anneal=start.anneal or training.get("anneal"),
    )
    defaults = _defaults_without_file(begun)
    try:
        return Train(
            config=start.config,
            from_=begun.from_,
            model=ModelConfig.from_dict(_overlaid(defaults.model.to_dict(), model)),
            train=TrainConfig.from_dict(_overlaid(defaults.train.to_dict(), training)),
        )
    except ValueError as error:
        raise UsageError(f"{start.config}: {error}") from None


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, those of a dictionary in it one by one."""
    return below | {
        key: _overlaid(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
        for key, value in above.items()
    }


def _is_taught_otherwise(start: Start) -> bool:
    """Whether a flag asks for what a model that is its own teacher cannot have."""
    return start.teacher is not None or start.carry_state or start.anneal is not None


def _defaults_without_file(start: Start) -> Train:
    """Each block has its own neuron, and the spike-driven one is its own teacher unless another is asked for."""
    # an unknown name is left to the parser, which lists the known ones
    changes = {"spiking": start.spiking} if start.spiking in SPIKING else {}
    if start.from_ is None:
        name = start.preset if start.preset in PRESETS else "tiny"
        model = model_preset(name, **changes)
        others = {"self_teacher": 0.0} if _is_taught_otherwise(start) else {}
        return Train(model=model, train=train_preset(name, model.spiking, **others))
    if start.preset is not None:
        raise UsageError(f"the sizes are those of {start.from_}; leave out --preset")
    from ..train.convert import defaults_from

    _check_mixer(start.from_, start)
    model, training = defaults_from(start.from_, **changes)
    return Train(model=model, train=training)


def _check_mixer(weights: Path, given: Start) -> None:
    """Raise SpikegptError if `--mixer` names another generation than that of `weights`.

    Before all flags are read: those of a generation have values that do not fit another's sizes.
    """
    from ..train.convert import cannot_change, read_model_config

    found = read_model_config(weights).mixer
    if given.mixer not in (None, found):
        raise cannot_change(weights, "mixer", found, given.mixer)
