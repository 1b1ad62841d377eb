"""Where a text may be cut, so that it can be read, encoded and counted in pieces."""

import re
from collections.abc import Callable, Iterable, Iterator

from ..common.errors import SpikegptError

LONGEST_CHARACTER = 4
# how the error begins that `strings` raises
NOT_UTF8 = "the text is not UTF-8"
# a letter or digit; anything else that is seen
_WORD, _MARK = r"[^\W_]", r"(?:[^\w\s]|_)"
# where byte pairs may be cut: before a newline, and before the one space in front of a word. An example, as text before
# and after the place, on which each tokenizer is asked whether the cut changes its tokens;
# and what all such places look like
PAIR_CUTS = {
    ("a", "\na"): rf"(?<={_WORD})(?=\n)",
    ("a.", "\na"): rf"(?<={_MARK})(?=\n)",
    ("a", " a"): rf"(?<={_WORD})(?= {_WORD})",
    ("a.", " a"): rf"(?<={_MARK})(?= {_WORD})",
}
_CANDIDATES = re.compile(rb"[\n ]")


def pair_pattern(cuts: Iterable[tuple[str, str]]) -> re.Pattern[str]:
    """Return the pattern, matching nothing but a place, of the cuts out of PAIR_CUTS."""
    # the first condition rules out most places at once
    return re.compile(rf"(?=[ \n])(?:{'|'.join(PAIR_CUTS[cut] for cut in cuts) or '(?!)'})")


def next_character(text: bytes | bytearray, position: int) -> int:
    """Return the first position from `position` on where a UTF-8 character begins or the text ends.

    Where no UTF-8 is, that is `position`.
    """
    for candidate in range(position, position + 4):
        if candidate >= len(text) or text[candidate] & 0xC0 != 0x80:
            return candidate
    return position


def cut_pieces(
    blocks: Iterable[bytes], size: int, next_cut: Callable[[bytes | bytearray, int], int | None]
) -> Iterator[bytes]:
    """Yield the text that `blocks` add up to in pieces of at least `size` bytes (>= 1), the last may be shorter.

    Pieces are cut where `next_cut` says. Where there is no place to cut, a piece grows until there is one.
    """
    held = bytearray()
    searched = size
    for block in blocks:
        held += block
        while (cut := next_cut(held, searched)) is not None:
            yield bytes(held[:cut])
            del held[:cut]
            searched = size
        # the last places were perhaps undecided for want of what follows
        searched = max(size, len(held) - 2 * LONGEST_CHARACTER)
    if held:
        yield bytes(held)


def next_character_cut(text: bytes | bytearray, start: int) -> int | None:
    """Return the first place at or after `start` where a character begins, if `text` reaches it."""
    cut = next_character(text, start)
    return cut if cut < len(text) else None


def next_pair_cut(text: bytes | bytearray, start: int, pattern: re.Pattern[str]) -> int | None:
    """Return the first place from `start` on that `pattern`, a `pair_pattern`, matches; None without one in sight."""
    for found in _CANDIDATES.finditer(text, start):
        place = found.start()
        # the characters around the place, without the bytes of others that the windows cut
        before = text[max(place - LONGEST_CHARACTER, 0) : place].decode(errors="ignore")[-1:]
        after = text[place : place + 1 + LONGEST_CHARACTER].decode(errors="ignore")
        if pattern.match(before + after, len(before)):
            return place
    return None


def strings(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield `pieces` as strings; SpikegptError names the first byte of the whole that is not UTF-8."""
    offset = 0
    for piece in pieces:
        try:
            yield piece.decode()
        except UnicodeDecodeError as error:
            raise SpikegptError(
                f"{NOT_UTF8} at byte {offset + error.start} (0x{piece[error.start]:02x}); "
                "convert it, or use the byte tokenizer, which takes any text"
            ) from None
        offset += len(piece)


def blocks_of(text: bytes | Iterable[bytes]) -> Iterable[bytes]:
    return [text] if isinstance(text, bytes) else text
