"""What a run rests on and does not own: its text, and the tokenizer, teacher and first weights that others made."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..checkpoint import run as ckpt
from ..checkpoint.shipped import from_everywhere, is_there
from ..common.errors import SpikegptError, warn_on_stderr
from ..common.files import sha256_of, write_atomically
from ..common.printing import command
from ..config import TrainConfig
from ..data.prepare import TOKENIZERS, prepare
from ..data.sources import PYTHON_DOCS
from ..data.tokenizers.stored import load_tokenizer
from ..data.tokens.token_file import TokenData
from ..evaluate.runs import CORPUS_FACTS, check_text, check_text_is_there


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return `config` with paths that are found from every folder, as a run stores them."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute())

    return dataclasses.replace(
        config,
        data=config.data if config.data == (PYTHON_DOCS,) else tuple(map(absolute, config.data)),
        tokenizer=config.tokenizer if config.tokenizer in TOKENIZERS else absolute(config.tokenizer),
        teacher=config.teacher and str(from_everywhere(Path(config.teacher))),
    )


def with_places(run: Path, values: dict[str, Any], data: tuple[str, ...] | None, teacher: str | None) -> dict[str, Any]:
    """Return the configuration of `run` with other places of its text and its teacher, where they are given."""
    places: dict[str, Any] = {"data": data, "teacher": teacher}
    given = {name: place for name, place in places.items() if place is not None}
    if not given:
        return values
    _, config = ckpt.configs_of(run, values)
    if teacher is not None and config.teacher is None:
        raise SpikegptError(f"{run} has no teacher; leave out --teacher")
    corpus = values.get("corpus") or {}
    digests = {
        "data": corpus.get("text_sha256") or corpus.get("tokens_sha256"),
        "teacher": values.get("teacher_sha256"),
    }
    for name in given:
        if digests[name] is None:
            warn_on_stderr(f"{run} is of an older spikegpt; that --{name} is what it began with is taken at its word")
    moved = with_absolute_paths(dataclasses.replace(config, **given)).to_dict()
    return {**values, "train": values["train"] | {name: moved[name] for name in given}}


def keep_places(run: Path, values: dict[str, Any]) -> None:
    """Write down where the text and the teacher of `run` lie now, if `values`, its configuration, says elsewhere."""
    if values != ckpt.read_run_config(run):
        write_atomically(run / "config.json", json.dumps(values, indent=1))


def prepare_data(
    config: TrainConfig, run: Path, newest: Path | None, begun: dict[str, Any] | None, cache: Path | None
) -> TokenData:
    """Return the text of a run as tokens; `begun` is the run's configuration if it goes on, `newest` its checkpoint."""
    if begun is not None:
        check_text_is_there(run, config.data)
        if config.teacher is not None and not is_there(Path(config.teacher)):
            moved = command("train", "--resume", run, "--teacher")
            raise SpikegptError(
                f"the teacher of {run} is not at {config.teacher}; say where it lies now: {moved} MODEL"
            )
    # a run owns its tokenizer: a resumed one never builds it anew
    stored = (newest or run) / "tokenizer.json"
    tokenizer = load_tokenizer(stored) if begun is not None and stored.exists() else config.tokenizer
    return prepare(list(config.data), tokenizer, cache, config.bpe_vocab_size, text_column=config.text_column)


def facts_of(config: TrainConfig, data: TokenData, start: Path | None) -> dict[str, Any]:
    """Return what a run writes down of these: facts of its text, digests of its tokenizer and of others' weights."""
    return {
        "corpus": {key: data.header.get(key) for key in CORPUS_FACTS},
        "tokenizer_fingerprint": data.tokenizer.fingerprint,
        "teacher_sha256": _weights_digest(config.teacher),
        "start_sha256": _weights_digest(start),
    }


def _weights_digest(model: str | Path | None) -> str | None:
    if model is None:
        return None
    path = Path(model)
    return ckpt.read_steadily(path, lambda: sha256_of(ckpt.find_model(path) / "model.safetensors"))


def check_facts(run: Path, begun: dict[str, Any], facts: dict[str, Any], header: dict[str, Any]) -> None:
    """Raise SpikegptError if what `run` rests on is no longer what it was when it began; old runs know less of it."""
    check_text(run, begun, header, advice="say where it lies with --data, or begin a new run")
    others = {
        "tokenizer_fingerprint": f"{run / 'tokenizer.json'}",
        "teacher_sha256": f"the teacher {begun['train'].get('teacher')}",
        "start_sha256": f"the model {begun.get('started_from')}",
    }
    for name, what in others.items():
        if None not in (begun.get(name), facts[name]) and begun[name] != facts[name]:
            raise SpikegptError(f"{what} is not what {run} began with (another sha256); put that back")
