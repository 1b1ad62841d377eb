"""The figures of whole runs, on a text of their own or on a file, and side by side. The protocols: perplexity.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint.run import read_run_config
from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..common.tables import columns
from ..config import TrainConfig
from ..data.prepare import prepare
from ..data.text import Text
from ..data.tokenizers import Tokenizer
from ..data.tokenizers.encoding import encode_first
from .perplexity import check_length, evaluate_stream, evaluate_windows


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
        SpikegptError: the text is gone, or too short to predict anything.
    """
    if file is not None:
        tokens, source = encode_first(tokenizer, Text.of_file(file), limit), str(file)
    else:
        # a checkpoint folder lies inside its run
        folder = run if (run / "metrics.jsonl").exists() else run.parent.parent
        if not (folder / "metrics.jsonl").exists():
            raise SpikegptError(f"{run} was not trained here, so it has no text of its own; give one with --file FILE")
        config = TrainConfig.from_dict(read_run_config(folder)["train"])
        prepared = prepare(list(config.data), tokenizer, cache, text_column=config.text_column)
        tokens, source = np.asarray(prepared.split(split)), f"{', '.join(config.data)} ({split})"
    tokens = tokens[:limit]
    check_length(tokens, source)
    return tokens, source


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
            device is not there.
    """
    model, tokenizer = load_model(run, device=device)
    tokens, source = read_text(run, tokenizer, split=split, file=file, limit=limit, cache=cache)
    ctx_len = min(model.config.ctx_len if ctx_len is None else ctx_len, len(tokens) - 1)
    stride = max(ctx_len // 2, 1) if stride is None else stride
    windows = evaluate_windows(model, tokens, tokenizer, ctx_len, stride, keep_membrane)
    return {
        "run": str(run),
        "spiking": model.config.spiking,
        "parameters": model.count_parameters(),
        "text": source,
        "stream": evaluate_stream(model, tokens, tokenizer).to_dict(),
        "windows": windows.to_dict(),
    }


_UNITS = {
    "bits/byte": "bits_per_byte",
    "bits/character": "bits_per_character",
    "perplexity per token": "perplexity",
    "perplexity per word": "word_perplexity",
    "perplexity per word or line end": "word_and_line_perplexity",
}


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures of several runs side by side, as text."""
    rows = [["run", *(result["run"] for result in results)]]

    def add(title: str, show: Callable[[dict[str, Any]], str]) -> None:
        rows.append([title, *map(show, results)])

    add("spiking", lambda r: r["spiking"])
    add("parameters", lambda r: f"{r['parameters']:,}")
    add("text", lambda r: r["text"])
    add("predicted: tokens", lambda r: f"{r['stream']['tokens']:,}")
    for name in ("bytes", "characters", "words", "line_ends"):
        add(f"  {name.replace('_', ' ')}", lambda r, name=name: f"{r['stream'][name]:,}")
    for protocol in ("stream", "windows"):
        add("protocol", lambda r, protocol=protocol: r[protocol]["protocol"])
        for title, name in _UNITS.items():
            add(f"  {title}", lambda r, protocol=protocol, name=name: f"{r[protocol][name]:.4f}")
    add("firing rate", lambda r: "dense" if r["stream"]["firing_rate"] is None else f"{r['stream']['firing_rate']:.2%}")
    for name in dict.fromkeys(name for result in results for name in result["stream"]["firing_rates"]):
        add(
            f"  {name}",
            lambda r, name=name: (
                f"{r['stream']['firing_rates'][name]:.2%}" if name in r["stream"]["firing_rates"] else "-"
            ),
        )
    return columns(rows)
