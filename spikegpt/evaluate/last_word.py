"""Last-word accuracy, as LAMBADA measures it: does a model name a passage's last word from all before it?

The word is what follows the last white space, and that white space belongs to it (" word"). It is found if each of its
tokens is the most likely one after those before it. The perplexity is per word: exp of the mean of its negative log
probability.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..common.tables import columns
from ..data.documents import has_rows, rows
from ..data.reading import text_lines
from ..data.tokenizers import Tokenizer
from .perplexity import named_if_not_finite, perplexity_of
from .scoring import score_continuations

PROTOCOL = (
    "last word after white space, from all before it; found if every token is the most likely one; state "
    "empty before a passage"
)

# all up to the last white space; that and the last word
_PASSAGE = re.compile(r"(.*\S)(\s+\S+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class LastWords:
    """Of a file of passages; `nats` is the summed negative log probability of their last words."""

    passages: int
    found: int
    nats: float

    @property
    def accuracy(self) -> float:
        return self.found / self.passages

    @property
    def perplexity(self) -> float:
        """Per last word."""
        return perplexity_of(self.nats, self.passages)

    def to_dict(self) -> dict[str, Any]:
        return {"protocol": PROTOCOL, **asdict(self), "accuracy": self.accuracy, "perplexity": self.perplexity}


def read_passages(file: Path) -> list[tuple[str, str, str]]:
    """Return (where: FILE, line N; all before the last word; the last word and the space before it) of every passage.

    A file with rows (JSONL, CSV, TSV) holds a "text" per row, any other a passage per line. White space around a
    passage is cut, and empty lines are skipped.

    Raises:
        SpikegptError: the file cannot be read, is not UTF-8, holds no passage, or a line is none.
    """
    passages: list[tuple[str, str, str]] = []
    for where, line in _lines(file):
        text = line.strip()
        split = _PASSAGE.fullmatch(text)
        if split is None:
            raise SpikegptError(
                f"{where}: {text[:40]!r} has no word before its last; give passages of at least two words"
            )
        context, word = split.groups()
        passages.append((where, context, word))
    if not passages:
        raise SpikegptError(f'{file} holds no passage; give one per line, in a .jsonl file as the "text" of an object')
    return passages


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, passage)."""
    if has_rows(file):
        for where, row in rows(file):
            if not isinstance(row.get("text"), str):
                raise SpikegptError(
                    f'{where}, has the keys {", ".join(row)}, and no "text" that is a string; each line needs one'
                )
            yield where, row["text"]
    else:
        yield from ((where, line) for where, line in text_lines(file) if line.strip())


def encode_passage(tokenizer: Tokenizer, where: str, context: str, word: str) -> tuple[list[int], list[int]]:
    """Return (ids of the context, ids of the word): those of the whole passage, cut where the context alone ends.

    Raises:
        SpikegptError: the tokenizer cannot encode the passage, or has no token that begins with the word.
    """
    try:
        ids, before = tokenizer.encode((context + word).encode()), len(tokenizer.encode(context.encode()))
    # the latter: half a surrogate pair, which JSON may spell
    except (SpikegptError, UnicodeEncodeError) as error:
        raise SpikegptError(f"{where}: {error}") from None
    if not 0 < before < len(ids):
        raise SpikegptError(
            f"{where}: the tokenizer makes one token of {word!r} and what stands before it; take out the line"
        )
    return ids[:before].tolist(), ids[before:].tolist()


def evaluate_last_words(run: Path, file: Path, device: str | torch.device = "auto") -> dict[str, Any]:
    """Return how well the model in `run` names the last words of the passages in `file`, as plain values.

    Raises:
        SpikegptError: no whole model there, the device is not there, or `file` is refused, see `read_passages` and
            `encode_passage`.
    """
    # the passages first: a fault in them is found before a large model is loaded
    passages = read_passages(file)
    model, tokenizer = load_model(run, device=device)
    encoded = [encode_passage(tokenizer, *passage) for passage in passages]
    with named_if_not_finite(run):
        scores = score_continuations(model, encoded)
    result = LastWords(
        passages=len(scores),
        found=sum(score.is_greedy for score in scores),
        nats=-sum(score.log_probability for score in scores),
    )
    return {"run": str(run), "spiking": model.config.spiking, "file": str(file), **result.to_dict()}


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures of several runs side by side, as text."""
    return f"{columns(cells(results))}\nprotocol: {PROTOCOL}"


def cells(results: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the same table."""
    rows = [
        [name, *(str(result[name]) for result in results)] for name in ("run", "spiking", "file", "passages", "found")
    ]
    rows.append(["accuracy", *(f"{result['accuracy']:.2%}" for result in results)])
    rows.append(["perplexity per last word", *(f"{result['perplexity']:.3f}" for result in results)])
    return rows
