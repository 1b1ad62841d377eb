"""What `--data` names: text files, JSONL files, folders of them, the documentation of Python; read in three splits."""

import hashlib
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..common.errors import SpikegptError
from . import jsonl
from .text import Text

SPLITS = ("train", "valid", "test")
PYTHON_DOCS = "python-docs"
TEXT_SUFFIXES = (".txt", ".md", ".text", jsonl.SUFFIX)
SPLIT_OF_STEM = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "spikegpt"


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
    source: str | Path | Iterable[str | Path], text_column: str = "text", cache_dir: Path | None = None
) -> Corpus:
    """Return the corpus that `source` names, split into train, valid and test.

    Args:
        source: "python-docs", the documentation texts that come with Python; or paths of text or JSONL files; or a
            folder: all its *.txt, *.md, *.text and *.jsonl files, at any depth, sorted by path. A folder with exactly
                the files train, valid
            (or validation, or val) and test is used as it is split; everything else is split 90 / 5 / 5 by position.
        text_column: of a JSONL file, whose documents are joined by newlines.
        cache_dir: where the texts of JSONL files are laid down; default ~/.cache/spikegpt.

    Raises:
        SpikegptError: a file or folder is missing or unreadable, a folder holds no text or half a split, or a split has
            fewer than 2 bytes.
    """
    paths = source_paths(source)
    if paths is None:
        return _python_docs()
    folder = (cache_dir or default_cache_dir()) / "texts"
    if len(paths) == 1 and paths[0].is_dir():
        return _read_folder(paths[0], text_column, folder)
    files = text_files(paths)
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    return split_text(name, _joined(files, text_column, folder), {"files": [file.name for file in files]})


def source_paths(source: str | Path | Iterable[str | Path]) -> list[Path] | None:
    """Return the paths that `source` names, or None for PYTHON_DOCS."""
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise SpikegptError(f"no source given; name text files, a folder, or {PYTHON_DOCS!r}")
    return None if sources == [PYTHON_DOCS] else [Path(path) for path in sources]


def text_files(paths: list[Path]) -> list[Path]:
    """Return the files among `paths` and in the folders among them.

    Raises:
        SpikegptError: a folder holds no text.
    """
    return [file for path in paths for file in (_files_in(path) if path.is_dir() else [path])]


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


def _read_folder(folder: Path, text_column: str, texts: Path) -> Corpus:
    files = _files_in(folder)
    names = [file.relative_to(folder).as_posix() for file in files]
    found = [SPLIT_OF_STEM[file.stem] for file in files if file.stem in SPLIT_OF_STEM]
    name = folder.resolve().name
    if len(files) == 3 and sorted(found) == sorted(SPLITS):
        splits = {SPLIT_OF_STEM[file.stem]: _joined([file], text_column, texts) for file in files}
        return Corpus(name=name, **splits, metadata={"files": names})
    # joining a train and a test file and splitting them anew would surprise whoever split them
    if len(set(found)) > 1:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise SpikegptError(
            f"{folder} looks split but holds {listed}; keep exactly train, valid and test in it, or name the files"
        )
    return split_text(name, _joined(files, text_column, texts), {"files": names})


def _files_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in TEXT_SUFFIXES and path.is_file())
    if not files:
        wanted = ", ".join("*" + suffix for suffix in TEXT_SUFFIXES)
        raise SpikegptError(f"folder {folder} holds no {wanted} file; name the files themselves")
    return files


def _joined(files: list[Path], text_column: str, folder: Path) -> Text:
    laid_down = [jsonl.text_file(file, text_column, folder) if file.suffix == jsonl.SUFFIX else file for file in files]
    return Text.joined(map(Text.of_file, laid_down), b"\n")
