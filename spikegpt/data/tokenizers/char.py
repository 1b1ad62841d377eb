"""One token per Unicode character."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ...common.errors import SpikegptError
from ..cutting import blocks_of, cut_pieces, next_character_cut, strings
from .contract import FORMAT, Tokenizer

# encoded at a time: bounds memory
CHARACTER_PIECE_BYTES = 1 << 20


class CharTokenizer(Tokenizer):
    """One token per Unicode character (code point); the vocabulary is a fixed alphabet."""

    name = "char"

    def __init__(self, characters: str):
        """Make the tokenizer whose token i is characters[i].

        Raises:
            SpikegptError: no characters, one of them twice, or a surrogate, which is half a character.
        """
        try:
            self._codes = _code_points(characters)
        except UnicodeEncodeError as error:
            raise SpikegptError(
                f"the alphabet holds U+{ord(characters[error.start]):04X}, half a character; remove it"
            ) from None
        if not characters or len(set(characters)) < len(characters):
            raise SpikegptError(
                f"the alphabet has {len(characters)} characters, {len(set(characters))} of them different; "
                "list each once"
            )
        self.characters, self.vocab_size = characters, len(characters)
        # one row beyond the alphabet, for every character that lies above it
        self._ids = np.full(int(self._codes.max()) + 2, -1, np.int32)
        self._ids[self._codes] = np.arange(self.vocab_size)

    @classmethod
    def from_text(cls, *texts: bytes | Iterable[bytes]) -> "CharTokenizer":
        """Return the tokenizer whose alphabet is every character of `texts`, sorted.

        A text is bytes, or blocks of bytes in order.

        Raises:
            SpikegptError: a text is not UTF-8, or all are empty.
        """
        seen = np.zeros(0x110000, np.bool_)
        for text in texts:
            for characters in _characters(text):
                seen[_code_points(characters)] = True
        return cls("".join(map(chr, np.flatnonzero(seen).tolist())))

    def next_cut(self, text: bytes | bytearray, start: int) -> int | None:
        return next_character_cut(text, start)

    def _encode(self, text: bytes) -> np.ndarray:
        """One id per character. Refuses what is not UTF-8, and a character outside the alphabet."""
        encoded, position = [np.empty(0, self.dtype)], 0
        for characters in _characters(text):
            codes = _code_points(characters)
            ids = self._ids.take(codes, mode="clip")
            if ids.size and ids.min() < 0:
                self._refuse(characters, int(np.argmax(ids < 0)), position)
            encoded.append(ids.astype(self.dtype))
            position += len(characters)
        return np.concatenate(encoded)

    def _refuse(self, characters: str, index: int, position: int) -> None:
        found = characters[index]
        raise SpikegptError(
            f"character {found!r} (U+{ord(found):04X}) at position {position + index} is not among the "
            f"{self.vocab_size} of the alphabet; "
            "remove it, or train with the byte tokenizer, which takes any text"
        )

    def _decode(self, ids: np.ndarray) -> bytes:
        return self._codes[ids].tobytes().decode("utf-32-le").encode()

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "tokenizer": self.name, "characters": self.characters}


def _characters(text: bytes | Iterable[bytes]) -> Iterator[str]:
    """Yield `text` as strings of about CHARACTER_PIECE_BYTES."""
    return strings(cut_pieces(blocks_of(text), CHARACTER_PIECE_BYTES, next_character_cut))


def _code_points(characters: str) -> np.ndarray:
    return np.frombuffer(characters.encode("utf-32-le"), np.dtype("<u4"))
