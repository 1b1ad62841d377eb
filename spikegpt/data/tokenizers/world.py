"""The tokenizer of RWKV "World": of the tokens that a text goes on with always the longest; any bytes are a text.

Its file: vocabulary_file.py. Id 0, which no text contains, is the end of a text.
"""

from functools import cached_property
from typing import Any

import numpy as np

from ...common.errors import SpikegptError
from .contract import FORMAT, Tokenizer
from .vocabulary_file import MOST_IDS

# in a node of the trie, beside the bytes that it goes on with: the id of the token that ends there
ID = -1


class WorldTokenizer(Tokenizer):
    """Greedy longest match over bytes."""

    name = "world"
    encodes_slowly = True

    def __init__(self, vocabulary: dict[bytes, int]):
        """Make the tokenizer of `vocabulary`, token -> id.

        Raises:
            SpikegptError: no or an empty token, or an id that is another's, below 1 or above 65,535.
        """
        ids = list(vocabulary.values())
        is_sound = bool(ids) and b"" not in vocabulary and len(set(ids)) == len(ids)
        if not is_sound or min(ids) < 1 or max(ids) >= MOST_IDS:
            raise SpikegptError(
                f"the vocabulary of {len(ids)} tokens is broken: each needs bytes, and an id of its own in 1 to "
                f"{MOST_IDS - 1}; fetch or write the tokenizer anew"
            )
        self.vocabulary = vocabulary
        self.vocab_size = max(ids) + 1
        self._bytes = [b""] * self.vocab_size
        for token, id in vocabulary.items():
            self._bytes[id] = token
        self._longest = max(map(len, vocabulary))

    @cached_property
    def has_token(self) -> np.ndarray:
        has_token = np.array([bool(token) for token in self._bytes])
        has_token[0] = True
        return has_token

    @cached_property
    def _trie(self) -> dict[int, Any]:
        trie: dict[int, Any] = {}
        for token, id in self.vocabulary.items():
            node = trie
            for byte in token:
                node = node.setdefault(byte, {})
            node[ID] = id
        return trie

    def _match(self, text: bytes | bytearray, start: int) -> tuple[int | None, int, bool]:
        """Return (id of the longest token at `start`, its end, whether a text that goes on might have a longer one)."""
        node, id, end = self._trie, None, start
        for place, byte in enumerate(text[start : start + self._longest], start + 1):
            if byte not in node:
                return id, end, False
            node = node[byte]
            if ID in node:
                id, end = node[ID], place
        return id, end, start + self._longest > len(text)

    def next_cut(self, text: bytes | bytearray, start: int) -> int | None:
        # a place that no token reaches across, wherever it begins
        reach = 0
        for place in range(max(start - self._longest + 1, 0), len(text)):
            if reach <= place >= start:
                return place
            _, end, is_open = self._match(text, place)
            if is_open:
                return None
            reach = max(reach, end)
        return None

    def _encode(self, text: bytes) -> np.ndarray:
        """The ids; refuses a byte that no token begins with."""
        ids, start = [], 0
        while start < len(text):
            id, end, _ = self._match(text, start)
            if id is None:
                raise SpikegptError(
                    f"byte 0x{text[start]:02x} at position {start} begins no token of the vocabulary; remove it, or "
                    "use the byte tokenizer, which takes any text"
                )
            ids.append(id)
            start = end
        return np.array(ids, self.dtype)

    def _decode(self, ids: np.ndarray) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def to_json(self) -> dict[str, Any]:
        # a letter of Latin-1 per byte
        vocabulary = {token.decode("latin-1"): id for token, id in self.vocabulary.items()}
        return {"format": FORMAT, "tokenizer": self.name, "vocabulary": vocabulary}

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> "WorldTokenizer":
        """Return the tokenizer that `to_json` described; `source` stands in the errors.

        Raises:
            SpikegptError: it is broken.
        """
        vocabulary = values.get("vocabulary")
        try:
            if not isinstance(vocabulary, dict) or any(type(id) is not int for id in vocabulary.values()):
                raise SpikegptError("there is no 'vocabulary' of tokens and ids; fetch or write the tokenizer anew")
            return cls({token.encode("latin-1"): id for token, id in vocabulary.items()})
        except UnicodeEncodeError as error:
            raise SpikegptError(f"{source}: U+{ord(error.object[error.start]):04X} is no byte") from None
        except SpikegptError as error:
            raise SpikegptError(f"{source}: {error}") from None
