"""One token per byte."""

from typing import Any

import numpy as np

from .contract import FORMAT, Tokenizer


class ByteTokenizer(Tokenizer):
    """One token per byte: takes any text, needs no vocabulary."""

    name = "byte"
    vocab_size = 256

    def next_cut(self, text: bytes | bytearray, start: int) -> int | None:
        return start if start < len(text) else None

    def _encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def _decode(self, ids: np.ndarray) -> bytes:
        return ids.astype(np.uint8).tobytes()

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "tokenizer": self.name}
