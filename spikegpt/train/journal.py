"""Files that a run only adds to, metrics.jsonl and samples.txt: what a resumed run finds of them, and keeps."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.errors import warn_on_stderr
from ..common.files import name_path, write_atomically

_LINE_END = b"\n"
_SAMPLE = re.compile(rb"^--- step (\d+) ---$", re.MULTILINE)


class Journal:
    """A file that a run adds to; resumed, it has what it had when the checkpoint was written, so nothing is double.

    Args:
        mark: what `mark` was when the checkpoint was written; None without a checkpoint, or one from before marks.
        readable: cuts the content down to what can be read and is not newer than the checkpoint; for a file that is no
            longer what was marked.
    """

    def __init__(self, path: Path, mark: dict[str, Any] | None, readable: Callable[[bytes], bytes]):
        content = path.read_bytes() if path.exists() else b""
        kept = readable(content) if mark is None else content[: mark["bytes"]]
        if mark is not None and hashlib.sha256(kept).hexdigest() != mark["sha256"]:
            kept = readable(content)
            left = kept.count(_LINE_END)
            warn_on_stderr(
                f"{path} is not what it was when the checkpoint was written: of its {mark['lines']} lines then, {left} "
                "can be read, perhaps changed ones, and are kept; the rest of this history is lost"
            )
        if kept != content:
            write_atomically(path, kept)
        self.path, self._bytes, self._lines, self._digest = path, len(kept), kept.count(_LINE_END), hashlib.sha256(kept)

    def add(self, text: str) -> None:
        data = text.encode()
        try:
            with self.path.open("ab") as file:
                file.write(data)
        except OSError as error:
            name_path(error, self.path)
            raise
        self._bytes, self._lines = self._bytes + len(data), self._lines + data.count(_LINE_END)
        self._digest.update(data)

    @property
    def mark(self) -> dict[str, Any]:
        """How much was written, and its sha256: what a checkpoint remembers."""
        return {"bytes": self._bytes, "lines": self._lines, "sha256": self._digest.hexdigest()}


def metrics_journal(run: Path, step: int, mark: dict[str, Any] | None) -> Journal:
    """Return metrics.jsonl of a run that goes on after `step`."""

    path = run / "metrics.jsonl"

    def readable(content: bytes) -> bytes:
        records = _records(content)
        lost = content.count(_LINE_END) - len(records)
        if lost:
            warn_on_stderr(f"{path}: {lost} lines cannot be read and are left out")
        return b"".join(line for line, record in records if record["step"] <= step)

    return Journal(path, mark, readable)


def samples_journal(run: Path, step: int, mark: dict[str, Any] | None) -> Journal:
    """Return samples.txt of a run that goes on after `step`."""

    def readable(content: bytes) -> bytes:
        newer = (found.start() for found in _SAMPLE.finditer(content) if int(found[1]) > step)
        return content[: next(newer, None)]

    return Journal(run / "samples.txt", mark, readable)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run; lines that are none, such as a last one cut off by a crash, are left out."""
    path = run / "metrics.jsonl"
    return [record for _, record in _records(path.read_bytes())] if path.exists() else []


def _records(content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """(line, what it says) of the lines that are records."""
    found = []
    # a last line without an end was cut off by a crash
    for line in content.split(_LINE_END)[:-1]:
        try:
            record = json.loads(line)
        # not JSON, not UTF-8, nested too deep
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            found.append((line + _LINE_END, record))
    return found
