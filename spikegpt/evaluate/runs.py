"""The figures of whole runs, on a text of their own or on a file, and side by side. The protocols: perplexity.py."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint.run import configs_of, locate, progress_of, read_run_config, run_of
from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..common.files import to_path
from ..common.printing import command, one_line
from ..common.tables import columns
from ..config.values import TOKENS, WINDOW
from ..data.documents import text_of
from ..data.prepare import prepare
from ..data.sources import PYTHON_DOCS, cache_folder
from ..data.splits import SPLITS
from ..data.tokenizers import Tokenizer
from ..data.tokenizers.encoding import encode_first
from .perplexity import check_length, evaluate_stream, evaluate_windows, named_if_not_finite

# of the header of its tokens, what a run writes down of its text
CORPUS_FACTS = ("corpus", "metadata", "text_sha256", "tokens_sha256", "splits")


def read_text(
    run: Path,
    tokenizer: Tokenizer,
    *,
    split: str = "test",
    file: Path | None = None,
    limit: int | None = None,
    cache: Path | None = None,
) -> tuple[np.ndarray, str]:
    """Return (tokens (N,), where they come from): a split of the text that `run` was trained on, or `file`.

    Raises:
        SpikegptError: the text is gone, not what the run was trained on, or too short to predict anything.
        ValueError: there is no such split, or `limit` is no number of tokens.
    """
    check_reading(split, limit)
    if file is not None:
        text = text_of(Path(file), "text", cache_folder(cache) / "texts")
        tokens, source = encode_first(tokenizer, text, limit), str(file)
    else:
        folder = run_of(run)
        if folder is None:
            raise SpikegptError(f"{run} was not trained here, so it has no text of its own; give one with --file FILE")
        values = read_run_config(folder)
        _, config = configs_of(folder, values)
        check_text_is_there(folder, config.data)
        prepared = prepare(list(config.data), tokenizer, cache, text_column=config.text_column)
        check_text(folder, values, prepared.header, advice="or give a text with --file FILE")
        tokens, source = np.asarray(prepared.split(split)), f"{', '.join(config.data)} ({split})"
    tokens = tokens[:limit]
    check_length(tokens, source)
    return tokens, source


def check_text_is_there(run: Path, data: Iterable[str]) -> None:
    """Raise SpikegptError if nothing lies where the text of `run` is said to."""
    for path in data:
        # the index: of a bare prefix of tokens
        if path != PYTHON_DOCS and not (os.path.lexists(path) or os.path.lexists(f"{path}.idx")):
            moved = command("train", "--resume", run, "--data")
            raise SpikegptError(f"the text of {run} is not at {path}; say where it lies now: {moved} TEXT")


def check_reading(split: str, limit: int | None) -> None:
    """Raise ValueError if `split` is none, or `limit` is no number of tokens."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; known: {', '.join(SPLITS)}")
    if limit is not None:
        TOKENS.check("limit", limit)


def check_text(run: Path, values: dict[str, Any], header: dict[str, Any], advice: str) -> None:
    """Raise SpikegptError unless the text with this header of tokens is the one that `run` was begun with.

    Args:
        values: the run's configuration. Runs without a digest of their text are taken at their word.
    """
    begun = values.get("corpus")
    begun = begun if isinstance(begun, dict) else {}
    faults = {
        "text_sha256": "it has another sha256",
        "splits": "it is cut into other splits",
        "tokens_sha256": "its tokens are others",
    }
    for name, what in faults.items():
        if begun.get(name) not in (None, header.get(name)):
            raise SpikegptError(
                f"the text of {run}, {', '.join(values['train']['data'])}, is not what it was trained on: {what}; "
                f"put that text back, {advice}"
            )


def evaluate_run(
    run: Path,
    *,
    split: str = "test",
    file: Path | None = None,
    limit: int | None = None,
    ctx_len: int | None = None,
    stride: int | None = None,
    keep_membrane: bool = False,
    cache: Path | None = None,
    device: str | torch.device = "auto",
) -> dict[str, Any]:
    """Return both protocols' figures of the model in `run`, on a split of its own text or on `file`, as plain values.

    `ctx_len` is by default the model's, `stride` half of it. A text shorter than that is one window.

    Raises:
        SpikegptError: no whole model there, its text is gone, the text is too short, `evaluate_windows` refuses, or the
            device is not there, or the model computes nothing finite.
        ValueError: there is no such split, or a number is out of range.
    """
    run = to_path("run", run)
    cache, file = cache and to_path("cache", cache), file and to_path("file", file)
    check_reading(split, limit)
    for name, value in (("ctx_len", ctx_len), ("stride", stride)):
        if value is not None:
            WINDOW.check(name, value)
    model, tokenizer = load_model(run, device=device)
    tokens, source = read_text(run, tokenizer, split=split, file=file, limit=limit, cache=cache)
    print(one_line(f"evaluating {run} on {source}: {len(tokens):,} tokens"), file=sys.stderr, flush=True)
    done, steps = progress_of(locate(run, warn=lambda message: None).newest) or (None, None)
    ctx_len = min(model.config.ctx_len if ctx_len is None else ctx_len, len(tokens) - 1)
    stride = max(ctx_len // 2, 1) if stride is None else stride
    with named_if_not_finite(run):
        windows = evaluate_windows(model, tokens, tokenizer, ctx_len, stride, keep_membrane)
        stream = evaluate_stream(model, tokens, tokenizer)
    return {
        "run": str(run),
        "step": done,
        "steps": steps,
        "spiking": model.config.spiking,
        "parameters": model.count_parameters(),
        "text": source,
        "stream": stream.to_dict(),
        "windows": windows.to_dict(),
    }


_UNITS = {
    "bits/byte": "bits_per_byte",
    "bits/character": "bits_per_character",
    "perplexity per token": "perplexity",
    "perplexity per word": "word_perplexity",
    "perplexity per word or line end": "word_and_line_perplexity",
}


def headlines(results: list[dict[str, Any]]) -> str:
    """Return what matters first of each run, a line each."""
    lines = []
    for result in results:
        stream = result["stream"]
        firing = "dense" if stream["firing_rate"] is None else f"firing {stream['firing_rate']:.2%}"
        steps = "" if result["step"] is None else f", step {result['step']:,} of {result['steps']:,}"
        lines.append(one_line(f"{result['run']}: {stream['bits_per_byte']:.4f} bits per byte, {firing}{steps}"))
    return "\n".join(lines)


def table(results: list[dict[str, Any]], layers: bool = True) -> str:
    """Return the figures of several runs side by side, as text; with `layers`, how much each layer of neurons fires."""
    return columns(cells(results, layers))


def cells(results: list[dict[str, Any]], layers: bool = True) -> list[list[str]]:
    """Return the rows of the same table."""
    rows = [[name, *(str(result[name]) for result in results)] for name in ("run", "spiking")]
    rows.append(["parameters", *(f"{result['parameters']:,}" for result in results)])
    rows.append(["text", *(result["text"] for result in results)])
    rows.append(["predicted: tokens", *(f"{result['stream']['tokens']:,}" for result in results)])
    for name in ("bytes", "characters", "words", "line_ends"):
        rows.append([f"  {name.replace('_', ' ')}", *(f"{result['stream'][name]:,}" for result in results)])
    for protocol in ("stream", "windows"):
        rows.append(["protocol", *(result[protocol]["protocol"] for result in results)])
        for title, name in _UNITS.items():
            rows.append([f"  {title}", *(f"{result[protocol][name]:,.4f}" for result in results)])
    rows.append(["firing rate", *(_share(result["stream"]["firing_rate"], "dense") for result in results)])
    for name in dict.fromkeys(name for result in results for name in result["stream"]["firing_rates"] if layers):
        rows.append([f"  {name}", *(_share(result["stream"]["firing_rates"].get(name), "-") for result in results)])
    return rows


def _share(rate: float | None, otherwise: str) -> str:
    return otherwise if rate is None else f"{rate:.2%}"
