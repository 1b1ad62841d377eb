"""What `--data` names: files with text, folders of them, the documentation of Python; read in three splits."""

import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from ..common.errors import SpikegptError, Warn, warn_on_stderr
from .documents import has_rows, text_of
from .folders import files_of
from .splits import SPLITS, own_splits
from .text import Text

PYTHON_DOCS = "python-docs"


def cache_folder(given: str | Path | None) -> Path:
    """Return the folder of downloads, corpora and tokens: the one that is given, or ~/.cache/spikegpt."""
    return Path.home() / ".cache" / "spikegpt" if given is None else Path(given)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text in three parts, and where it comes from. The texts stay in their files until they are read."""

    name: str
    train: Text
    valid: Text
    test: Text
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for split in SPLITS:
            if len(self.split(split)) < 2:
                sizes = ", ".join(f"{split} {len(self.split(split))}" for split in SPLITS)
                raise SpikegptError(
                    f"corpus {self.name}: every split needs at least 2 bytes, found {sizes}; give more text"
                )

    def __len__(self) -> int:
        """In bytes."""
        return sum(len(self.split(split)) for split in SPLITS)

    def split(self, name: str) -> Text:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    @property
    def sha256(self) -> str:
        """Of the three splits joined, which for a single text file is the file."""
        return self._digests[1]

    @property
    def train_sha256(self) -> str:
        return self._digests[0]

    @cached_property
    def _digests(self) -> tuple[str, str]:
        """sha256 of the train split, and of all three: the texts are read once for both."""
        digest, digests = hashlib.sha256(), []
        for split in SPLITS:
            for block in self.split(split).blocks():
                digest.update(block)
            digests.append(digest.hexdigest())
        return digests[0], digests[-1]


def read_corpus(
    source: str | Path | Iterable[str | Path],
    text_column: str = "text",
    cache_dir: Path | None = None,
    warn: Warn = warn_on_stderr,
) -> Corpus:
    """Return the corpus that `source` names, split into train, valid and test.

    Args:
        source: "python-docs", the documentation texts that come with Python; or paths of files with text; or folders:
            all their texts, at any depth, sorted by path (`folders.files_of`). Files that bear the names of all three
            splits keep them (`splits.own_splits`); everything else is split 90 / 5 / 5 by position.
        text_column: of JSONL, CSV and TSV files, whose documents are joined by newlines.
        cache_dir: where texts are laid down that are packed, not UTF-8 or in rows; default ~/.cache/spikegpt.
        warn: is told which files of a folder are left out.

    Raises:
        SpikegptError: a file or folder is missing, unreadable or no text, a folder holds no text, files hold half a
            split, or a split has fewer than 2 bytes.
    """
    paths = source_paths(source)
    if paths is None:
        return _python_docs()
    files, folder = files_of(paths, warn), cache_folder(cache_dir) / "texts"
    if text_column != "text" and not any(map(has_rows, files)):
        warn(f"there is no column {text_column!r} to take: none of the files has rows (JSONL, CSV, TSV)")
    own = own_splits(files, warn)
    read = set(chain.from_iterable(own.values()))
    files = [file for file in files if not own or file in read]

    def joined(some: list[Path]) -> Text:
        return Text.joined((text_of(file, text_column, folder) for file in some), b"\n")

    if len(paths) == 1 and os.path.isdir(paths[0]):
        name = paths[0].resolve().name
        metadata = {"files": [file.relative_to(paths[0]).as_posix() for file in files]}
    else:
        name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        metadata = {"files": [file.name for file in files]}
    if own:
        return Corpus(name=name, **{split: joined(some) for split, some in own.items()}, metadata=metadata)
    return split_text(name, joined(files), metadata)


def source_paths(source: str | Path | Iterable[str | Path]) -> list[Path] | None:
    """Return the paths that `source` names, or None for PYTHON_DOCS."""
    sources = [source] if isinstance(source, str | Path) else list(source)
    # an empty string would be the current folder
    if not sources or "" in sources:
        raise SpikegptError(f"no source given; name text files, a folder, or {PYTHON_DOCS!r}")
    if PYTHON_DOCS in sources and len(sources) > 1:
        raise SpikegptError(f"{PYTHON_DOCS!r} stands alone; a file or folder of that name is ./{PYTHON_DOCS}")
    if address := next((path for path in map(str, sources) if re.match(r"[a-z][a-z0-9+.]+://", path)), None):
        raise SpikegptError(f"{address} is an address; fetch it, and name the file")
    return None if sources == [PYTHON_DOCS] else [Path(path) for path in sources]


def split_text(name: str, text: Text, metadata: dict[str, Any] | None = None) -> Corpus:
    """Return `text` as its first 90 %, next 5 % and last 5 %, each cut moved on to a character's first byte."""
    if not any(len(block.strip()) > 1 for block in text.blocks()):
        raise SpikegptError(
            f"corpus {name} has {len(text)} byte(s) of text; give a text of at least some hundred characters"
        )
    valid, test = (text.next_character(len(text) * percent // 100) for percent in (90, 95))
    parts = {"train": text.cut(0, valid), "valid": text.cut(valid, test), "test": text.cut(test, len(text))}
    return Corpus(name=name, **parts, metadata=metadata or {})


def _python_docs() -> Corpus:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise SpikegptError(
            f"this Python ({sys.executable}) comes without pydoc_data; name a text file as the source instead"
        ) from None
    text = "\n\n".join(topics[topic].strip("\n") for topic in sorted(topics)) + "\n"
    origin = f"pydoc_data.topics of Python {platform.python_version()}"
    metadata = {"python": platform.python_version(), "origin": origin, "topics": len(topics)}
    return split_text(PYTHON_DOCS, Text.of(text.encode()), metadata)
