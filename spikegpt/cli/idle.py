"""Options that change nothing beside others are warned of: here those of the verbs, in config/effects.py all else."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ..common.errors import warn_on_stderr
from ..config.effects import idle_in_sampling
from .options import Context, Data, Evaluate, FinetuneClassify, Generate, Measuring, Simulate


def warn_of_idle(given: Any, defaults: Mapping[str, Any], idle: Mapping[str, str]) -> None:
    """Warn of what in `given`, options or a configuration, differs from its default, but is `idle`: name -> why."""
    for name, value in vars(given).items():
        if name in idle and value != defaults[name]:
            warn_on_stderr(f"{_as_typed(name, value)} has no effect: {idle[name]}")


def _as_typed(name: str, value: Any) -> str:
    flag = name.strip("_").replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return " ".join((f"--{flag}", *(map(str, value) if isinstance(value, tuple) else (str(value),))))


def warn_of_idle_options(options: Any, idle: Mapping[str, str]) -> None:
    """Warn of the options of a verb that were given, but are `idle`."""
    warn_of_idle(options, _defaults_of(options), idle)


def given_of(options: Any, names: Iterable[str]) -> list[str]:
    """Return the flags of those options in `names` that differ from their defaults."""
    defaults = _defaults_of(options)
    return ["--" + name.replace("_", "-") for name in names if getattr(options, name) != defaults[name]]


def _defaults_of(options: Any) -> dict[str, Any]:
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(options)
    }


def warn_of_idle_sampling(options: Generate) -> None:
    sampling = options.sampling
    warn_of_idle(sampling, vars(type(sampling)()), idle_in_sampling(sampling))


def idle_in_data(options: Data, is_corpus: bool, is_recall: bool) -> dict[str, str]:
    """Return option -> why it changes nothing; `is_corpus`: one of ours is named; `is_recall`: what is drawn."""
    of_tokens, of_rows = ("tokenizer", "end_token", "processes"), ("config", "split", "separator", "limit_bytes")
    of_recall = ("pairs", "letters", "seed")
    if options.name is None:
        others = ("out", "binidx", "column", "cache", *of_tokens, *of_rows, *of_recall)
        return dict.fromkeys(others, "no text is named, so the corpora are listed")
    idle = {} if is_recall else dict.fromkeys(of_recall, "only recall is drawn")
    if options.binidx is not None:
        return idle | dict.fromkeys(("out", *of_rows), "--binidx writes the tokens of a text")
    idle |= dict.fromkeys(of_tokens, "only --binidx writes tokens")
    if is_recall:
        return idle | dict.fromkeys(("column", "config", "split", "separator"), "recall is no data set of rows")
    return idle | (dict.fromkeys(("column", *of_rows), f"{options.name} is no data set of rows") if is_corpus else {})


def idle_in_reading(options: Evaluate | Measuring | Context | Simulate) -> dict[str, str]:
    """Return option -> why it changes nothing in what is read and shown."""
    idle = {} if options.file is None else {"split": f"{options.file} is read"}
    if isinstance(options, Context):
        idle |= (
            dict.fromkeys(("split", "file", "cache"), "--recall reads no text")
            if options.recall
            else dict.fromkeys(("letters", "seed"), "a text is read; --recall draws keys and values")
        )
    if isinstance(options, Evaluate) and (options.json or options.last_word is not None):
        idle["layers"] = "JSON holds every layer" if options.json else "--last-word has no table of layers"
    return idle


def idle_in_classifying(options: FinetuneClassify) -> dict[str, str]:
    """Return option -> why it changes nothing."""
    named = f"the columns are those of {options.task}"
    return {} if options.task is None else dict.fromkeys(("text_column", "label_column"), named)
