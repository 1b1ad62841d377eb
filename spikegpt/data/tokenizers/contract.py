"""What every tokenizer can do: text to token ids and back, whole or streamed; and how its JSON file is read.

Text is bytes on both sides, so that nothing is lost and bits per byte mean the same for every tokenizer.
"""

import codecs
import hashlib
import json
import os
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ...common.errors import SpikegptError
from ...common.files import write_atomically
from ...common.json_text import parse_json
from ..reading import check_is_file
from .vocabulary_file import is_vocabulary, read_vocabulary

FORMAT = 1
# encoded at a time: bounds memory
PAIR_PIECE_BYTES = 1 << 17


class Tokenizer(ABC):
    """What the tokenizers have in common. A tokenizer never changes once it is made."""

    name: ClassVar[str]
    encodes_slowly: ClassVar[bool] = False
    """whether long texts are worth several processes"""
    vocab_size: int

    @abstractmethod
    def next_cut(self, text: bytes | bytearray, start: int) -> int | None:
        """Return the first place at or after `start` (at least 1) where `text` may be cut without changing its tokens.

        `text` may be the beginning of a longer one: a place that this cannot decide is left out. None if there is no
        place.
        """

    @abstractmethod
    def _encode(self, text: bytes) -> np.ndarray:
        """Return the ids (N,) of `text`, in the smallest unsigned type that holds vocab_size ids."""

    @abstractmethod
    def _decode(self, ids: np.ndarray) -> bytes:
        """Return the bytes of `ids` (N,), all within the vocabulary."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return what `load_tokenizer` makes the same tokenizer from."""

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the ids (N,) of `text`, in the smallest unsigned type that holds vocab_size ids.

        A model takes them as `torch.tensor(ids, dtype=torch.long)[None]`, (1, N).

        Raises:
            SpikegptError: `text` is neither str nor bytes, holds half a character, or does not fit the tokenizer.
        """
        if isinstance(text, str):
            try:
                text = text.encode()
            except UnicodeEncodeError as error:
                raise SpikegptError(
                    f"the text holds U+{ord(error.object[error.start]):04X} at position {error.start}, "
                    "half a character; remove it"
                ) from None
        if not isinstance(text, bytes | bytearray | memoryview):
            raise SpikegptError(f"a tokenizer encodes one str or bytes, got {type(text).__name__}")
        return self._encode(bytes(text))

    def decode(self, ids: ArrayLike) -> bytes:
        """Return the bytes of `ids` (N,).

        Raises:
            SpikegptError: an id is outside the vocabulary, or `ids` are not whole numbers in one row.
        """
        ids = np.asarray(ids)
        if ids.size == 0:
            return b""
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise SpikegptError(f"ids must be whole numbers (N,), got {ids.dtype} of shape {ids.shape}")
        for extreme in (int(ids.min()), int(ids.max())):
            if not 0 <= extreme < self.vocab_size:
                raise SpikegptError(
                    f"token id {extreme} is outside the vocabulary of {self.vocab_size} (0 to {self.vocab_size - 1}); "
                    "these tokens come from another tokenizer"
                )
        return self._decode(ids)

    @property
    def dtype(self) -> np.dtype:
        return np.min_scalar_type(self.vocab_size - 1)

    @cached_property
    def has_token(self) -> np.ndarray:
        """(vocab_size,) bool: which ids are tokens; a vocabulary may have holes."""
        return np.ones(self.vocab_size, np.bool_)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON: equal for equal tokenizers."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        write_atomically(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False))

    def stream(self) -> "TextStream":
        """Return a decoder that takes one id at a time."""
        return TextStream(self)


class TextStream:
    """Text from ids, one at a time: whole characters; U+FFFD for what is no UTF-8, never for half a character."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Return the text that `id` completes, often "" in the middle of a character."""
        return self._decoder.decode(self._tokenizer.decode([id]))

    def flush(self) -> str:
        """Return what is left: "", or U+FFFD for a character that was never finished."""
        return self._decoder.decode(b"", final=True)


def read_values(path: str | Path) -> Any:
    """Return the content of the JSON file of a tokenizer, or what a vocabulary of RWKV World's would be there.

    Raises:
        SpikegptError: it is missing, or neither of the two.
    """
    path = Path(path)
    try:
        if os.path.exists(path):
            check_is_file(path)
        content = path.read_bytes()
        if is_vocabulary(content):
            tokens = read_vocabulary(content, str(path))
            vocabulary = {token.decode("latin-1"): id for token, id in tokens.items()}
            return {"format": FORMAT, "tokenizer": "world", "vocabulary": vocabulary}
        return parse_json(content)
    except OSError as error:
        raise SpikegptError(
            f"cannot read the tokenizer {path}: {error.strerror}; give byte, char, bpe or a tokenizer.json"
        ) from None
    except ValueError as error:
        raise SpikegptError(
            f"{path} is not JSON ({error}); give a tokenizer.json, or RWKV World's vocabulary"
        ) from None


def check_values(values: Any, source: str) -> None:
    """Raise SpikegptError unless `values`, the content of `source`, are those of a tokenizer of some kind."""
    if not isinstance(values, dict) or not values.keys() & {"model", "tokenizer"}:
        raise SpikegptError(
            f"{source} is not a tokenizer: "
            "it has neither a 'model' (Hugging Face tokenizers) nor a 'tokenizer' (spikegpt)"
        )
