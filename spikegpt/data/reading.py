"""Files of text as they are found: recognised by their content, unpacked, decoded; what is no text is refused.

Every way in which a text comes in leads through here. What is no text: kinds.py. What rows mean: documents.py.
"""

import bz2
import codecs
import gzip
import lzma
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ..common.errors import SpikegptError, in_words
from ..common.files import name_path
from .kinds import foreign_kind

BLOCK_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16
SHORT_BYTES = 256
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".lzma", ".zst")
_UNPACKERS: dict[re.Pattern[bytes], Callable[..., Any]] = {
    re.compile(rb"\x1f\x8b\x08"): gzip.open,
    re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"): bz2.open,
    re.compile(rb"\xfd7zXZ\0"): lzma.open,
    # of old: the usual properties, size of the dictionary, and of the text, which may be unknown
    re.compile(rb"\x5d\0\0[\0-\xff]{2}(?:\xff{8}|[\0-\xff]{5}\0{3})"): lzma.open,
}
# UTF-32 first: the mark of UTF-16 is its beginning
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# some programs write one before the one that is there
_UTF8_MARKS = re.compile(rb"(?:\xef\xbb\xbf)+")
# control characters but for \b \t \n \v \f \r and ESC, which terminals and printers were sent in texts
_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\b\t\n\v\f\r\x1b"})
_MOST_CONTROLS = 1 / 20


def check_is_file(path: Path) -> None:
    """Refuse what opening may never come back from, such as a FIFO.

    Raises:
        SpikegptError: missing, a folder, or no regular file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SpikegptError(f"cannot read {path}: {error.strerror}; give a text file or a folder of them") from None
    # a NUL byte in the name
    except ValueError as error:
        raise SpikegptError(f"cannot read {str(path)!r}: {error}") from None
    if stat.S_ISDIR(mode):
        raise SpikegptError(f"{path} is a folder, and one file is wanted; name a file in it")
    if not stat.S_ISREG(mode):
        raise SpikegptError(f"{path} is a pipe, socket or device; write its content to a file, and give that")


def plain_start(path: Path) -> int | None:
    """Return the byte of a file where its text begins; None if it has to be unpacked or decoded first.

    Raises:
        SpikegptError: it cannot be read, or is no text by its beginning.
    """
    with _opened(path) as (file, is_packed):
        opening = file.read(SAMPLE_BYTES)
        return None if is_packed or _encoding(opening) else _text_start(opening, path)


def text_blocks(path: Path) -> Iterator[bytes]:
    """Yield the text of a file in order: unpacked, without byte order mark, UTF-16 and UTF-32 as UTF-8.

    Raises:
        SpikegptError: it cannot be read, is damaged, or is no text.
    """
    with _opened(path) as (file, _):
        opening = file.read(BLOCK_BYTES)
        encoding = _encoding(opening)
        rest = iter(partial(file.read, BLOCK_BYTES), b"")
        blocks: Iterator[bytes]
        if encoding is None:
            blocks = chain([opening[_text_start(opening, path) :]], rest)
        else:
            blocks = (text.encode() for text in codecs.iterdecode(chain([opening], rest), encoding))
        try:
            for block in blocks:
                check_block(block, path)
                yield block
        except UnicodeError as error:
            raise SpikegptError(f"{path} is marked as {encoding} and is not: {error}; convert it to UTF-8") from None


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    r"""Yield (FILE, line N; the line) of a text file. A line ends with \n or \r\n, and nothing else.

    In a file that begins with \r alone, as old Macs and their spreadsheets write, a line ends with that.

    Raises:
        SpikegptError: as `text_blocks`, or a line is not UTF-8, or \n follows where lines end with \r.
    """
    number, begun, end = 1, [b""], None
    for block in text_blocks(path):
        # one at the end of a block may be half of \r\n
        if end is None and (b"\n" in block or b"\r" in begun[-1][-1:] + block[:-1]):
            end = b"\n" if b"\n" in block else b"\r"
            block, begun = b"".join([*begun, block]), [b""]
        if end == b"\r" and b"\n" in block:
            raise SpikegptError(f"{path}: lines end with CR up to line {number}, then with LF; write all with LF")
        *ended, rest = block.split(end or b"\n")
        for line in ended:
            yield _decoded(b"".join([*begun, line]), f"{path}, line {number}")
            number, begun = number + 1, [b""]
        begun.append(rest)
    if last := b"".join(begun):
        yield _decoded(last, f"{path}, line {number}")


def check_block(block: bytes | bytearray, name: object) -> None:
    """Raise SpikegptError if a part of a text is none: if too many of its bytes are control characters."""
    controls = len(block) - len(block.translate(None, _CONTROLS))
    # a few in a short block, as the last one may be, say nothing
    if controls > _MOST_CONTROLS * max(len(block), SHORT_BYTES):
        raise SpikegptError(
            f"{name} is no text: {controls / len(block):.0%} of its bytes are control characters; name a file of text"
        )


def checked(pieces: Iterable[bytes], name: object) -> Iterator[bytes]:
    """Yield `pieces`, and refuse them as `check_block` does, by a block of them at a time."""
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= BLOCK_BYTES:
            check_block(held, name)
            held.clear()
        yield piece
    check_block(held, name)


def _decoded(line: bytes, place: str) -> tuple[str, str]:
    try:
        return place, line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise SpikegptError(f"{place}, is not UTF-8 (0x{line[error.start]:02x}); convert the file to UTF-8") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """Yield (the file, unpacked as it is read; whether it is packed)."""
    check_is_file(path)
    try:
        with path.open("rb") as raw:
            opening = raw.read(SAMPLE_BYTES)
            raw.seek(0)
            unpack = next((unpack for magic, unpack in _UNPACKERS.items() if magic.match(opening)), None)
            if unpack is None:
                yield raw, False
                return
            with unpack(raw) as file:
                yield file, True
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        # without a number it is no error of the system: gzip and bz2 say so that a file is damaged
        if isinstance(error, OSError) and error.errno is not None:
            name_path(error, path)
            raise SpikegptError(f"cannot read {in_words(error)}") from None
        raise SpikegptError(f"{path} is packed and damaged: {error}; fetch or pack it anew") from None


def _encoding(opening: bytes) -> str | None:
    """The encoding that a byte order mark tells, unless it is UTF-8."""
    return next((encoding for mark, encoding in _MARKS.items() if opening.startswith(mark)), None)


def _text_start(opening: bytes, path: Path) -> int:
    """The byte where the text begins: after the byte order mark of UTF-8. Refuses what is no text by its beginning."""
    sample = opening[:SAMPLE_BYTES]
    if any(magic.match(sample) for magic in _UNPACKERS):
        raise SpikegptError(f"{path} is packed twice; unpack it once")
    kind = foreign_kind(sample)
    if kind is not None:
        raise SpikegptError(f"{path} is {kind}")
    check_block(sample, path)
    marks = _UTF8_MARKS.match(sample)
    return marks.end() if marks else 0
