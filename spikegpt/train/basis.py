"""What a run rests on and does not own: its text, and the tokenizer, teacher and first weights that others made."""

import dataclasses
from pathlib import Path
from typing import Any

from ..checkpoint import run as ckpt
from ..common.errors import SpikegptError
from ..common.files import sha256_of
from ..config import TrainConfig
from ..data.prepare import TOKENIZERS, prepare
from ..data.sources import PYTHON_DOCS
from ..data.tokenizers.stored import load_tokenizer
from ..data.tokens.token_file import TokenData
from ..evaluate.runs import CORPUS_FACTS, check_text


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return `config` with paths that are found from every folder, as a run stores them."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute())

    return dataclasses.replace(
        config,
        data=config.data if config.data == (PYTHON_DOCS,) else tuple(map(absolute, config.data)),
        tokenizer=config.tokenizer if config.tokenizer in TOKENIZERS else absolute(config.tokenizer),
        teacher=config.teacher and absolute(config.teacher),
    )


def prepare_data(
    config: TrainConfig, run: Path, newest: Path | None, begun: dict[str, Any] | None, cache: Path | None
) -> TokenData:
    """Return the text of a run as tokens; `begun` is the run's configuration if it goes on, `newest` its checkpoint."""
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
    check_text(run, begun, header, advice="or begin a new run")
    others = {
        "tokenizer_fingerprint": f"{run / 'tokenizer.json'}",
        "teacher_sha256": f"the teacher {begun['train'].get('teacher')}",
        "start_sha256": f"the model {begun.get('started_from')}",
    }
    for name, what in others.items():
        if None not in (begun.get(name), facts[name]) and begun[name] != facts[name]:
            raise SpikegptError(f"{what} is not what {run} began with (another sha256); put that back")
