"""A text of any size: ranges of files and bytes, joined and read in pieces, so that none need fit into memory."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Self

from ..common.errors import SpikegptError
from .cutting import LONGEST_CHARACTER, next_character
from .reading import BLOCK_BYTES, check_block, check_is_file


@dataclass(frozen=True)
class _Part:
    """Bytes [start, stop) of a file, or of bytes at hand; `name` is the file that the user knows them by."""

    source: Path | bytes
    start: int
    stop: int
    name: Path | None = None

    def blocks(self) -> Iterator[bytes]:
        if isinstance(self.source, bytes):
            yield self.source[self.start : self.stop]
            return
        try:
            with self.source.open("rb") as file:
                file.seek(self.start)
                left = self.stop - self.start
                while left > 0:
                    block = file.read(min(BLOCK_BYTES, left))
                    if not block:
                        raise SpikegptError(
                            f"{self.source} became shorter while it was read; run again once nobody writes it"
                        )
                    check_block(block, self.name)
                    yield block
                    left -= len(block)
        except OSError as error:
            raise SpikegptError(f"cannot read {self.source}: {error.strerror}") from None


class Text:
    """A text, as bytes. Its length is known; `blocks` reads it in order, `read` returns it whole."""

    def __init__(self, parts: Iterable[_Part]):
        self._parts = [part for part in parts if part.stop > part.start]
        self._size = sum(part.stop - part.start for part in self._parts)

    @classmethod
    def of(cls, text: bytes) -> Self:
        return cls([_Part(text, 0, len(text))])

    @classmethod
    def of_file(cls, path: Path, start: int = 0, name: Path | None = None) -> Self:
        """Return the bytes of a file from `start` on, as they lie there; `documents.text_of` says what they are.

        Args:
            name: the file that its user knows it by; default `path`.

        Raises:
            SpikegptError: missing or unreadable.
        """
        check_is_file(path)
        try:
            # opened here, so that what cannot be read is told at once
            with path.open("rb") as file:
                return cls([_Part(path, start, file.seek(0, 2), name or path)])
        except OSError as error:
            raise SpikegptError(f"cannot read {path}: {error.strerror}; give a text file or a folder of them") from None

    @classmethod
    def joined(cls, texts: Iterable["Text"], separator: bytes) -> Self:
        parts = []
        for text in texts:
            parts += [_Part(separator, 0, len(separator)), *text._parts]
        return cls(parts[1:])

    def __len__(self) -> int:
        return self._size

    def cut(self, start: int, stop: int) -> "Text":
        """Return bytes [start, stop) of the text."""
        parts, position = [], 0
        for part in self._parts:
            first = part.start + max(start - position, 0)
            last = min(part.stop, part.start + stop - position)
            parts.append(replace(part, start=first, stop=last))
            position += part.stop - part.start
        return Text(parts)

    def next_character(self, position: int) -> int:
        """Return the first place from `position` on where a UTF-8 character begins; `position` if it is not UTF-8."""
        return position + next_character(self.cut(position, position + LONGEST_CHARACTER).read(), 0)

    def blocks(self) -> Iterator[bytes]:
        """Yield the text in order, at most BLOCK_BYTES of a file at a time.

        Raises:
            SpikegptError: a file can no longer be read, is shorter than it was, or holds what is no text.
        """
        for part in self._parts:
            yield from part.blocks()

    def first_fault(self) -> str | None:
        """Return in which file the first byte stands that is not UTF-8, and where; None if there is none."""
        for part in self._parts:
            decoder, place = codecs.getincrementaldecoder("utf-8")(), part.start
            for block in chain(part.blocks(), [b""]):
                held = len(decoder.getstate()[0])
                try:
                    decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    return f"{part.name} is not UTF-8 at byte {place - held + error.start}"
                place += len(block)
        return None

    def read(self) -> bytes:
        return b"".join(self.blocks())
