"""JSON lines: one document per line, its text in one column."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..common.errors import SpikegptError
from ..common.files import atomic_path, sha256_of

SUFFIX = ".jsonl"


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (FILE, line N; the object) of each line of a JSONL file. Empty lines are skipped.

    Raises:
        SpikegptError: the file cannot be read, or a line is not a JSON object; file and line are named.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{path}, line {number}"
                    yield place, _object(line, place)
    except OSError as error:
        raise SpikegptError(f"cannot read {path}: {error.strerror}; give a JSONL file") from None


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise SpikegptError(f"{place}, is not JSON: {error}; mend or remove the line") from None
    if not isinstance(values, dict):
        raise SpikegptError(
            f"{place}, is not an object but a {type(values).__name__}; every line must be an object with a text"
        )
    return values


def documents(path: Path, column: str) -> Iterator[bytes]:
    """Yield the text of each line of a JSONL file, as UTF-8.

    Raises:
        SpikegptError: as `rows`; or a line has no such text.
    """
    for place, values in rows(path):
        if column not in values:
            raise SpikegptError(
                f"{place}, has no {column!r}, only {', '.join(values) or 'nothing'}; "
                "name the one that holds the text: --text-column"
            )
        text = values[column]
        if not isinstance(text, str):
            raise SpikegptError(
                f"{place}, has a {type(text).__name__} as {column!r}, not text; "
                "mend the line or name another --text-column"
            )
        try:
            yield text.encode()
        except UnicodeEncodeError as error:
            raise SpikegptError(
                f"{place}, has half a character in {column!r}: {error}; mend or remove the line"
            ) from None


def text_file(path: Path, column: str, folder: Path) -> Path:
    """Return a file in `folder` with the joined texts of a JSONL file; written once per content and column.

    Raises:
        SpikegptError: as `documents`; or `folder` cannot be written.
    """
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise SpikegptError(f"cannot read {path}: {error.strerror}; give a JSONL file") from None
    target = folder / f"{path.stem}-{column}-{digest[:12]}.txt".replace("/", "_")
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            separator = b""
            for text in documents(path, column):
                file.write(separator + text)
                separator = b"\n"
    except OSError as error:
        raise SpikegptError(f"cannot write {target}: {error.strerror}; free space or choose another --cache") from None
    return target
