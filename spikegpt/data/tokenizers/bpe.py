"""Byte pairs, by the Hugging Face `tokenizers` library.

It is imported only when a tokenizer is made, for it takes time.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import SpikegptError
from ..cutting import PAIR_CUTS, blocks_of, cut_pieces, next_pair_cut, pair_pattern, strings
from .contract import PAIR_PIECE_BYTES, TextStream, Tokenizer, check_values, read_values

# so begin the names of ids that are no token: rows of a model without one, padding, unknown characters
NO_TOKEN = "<|spikegpt "
# words whose pairs are remembered, about 50 MB; longer ones, in characters, are not
KNOWN_WORDS, LONGEST_KNOWN_WORD = 1 << 18, 64
# characters of a word that pairs are learned from: the library's time grows with the square of it
LONGEST_TRAINING_WORD = 256
_LONG_WORD = re.compile(
    "|".join(rf"{kind}{{{LONGEST_TRAINING_WORD}}}" for kind in (r"[^\W\d]", r"\d", r"[^\w\s]", r"\s"))
)


class BPETokenizer(Tokenizer):
    """Byte pairs, or whatever else a `tokenizers` JSON describes.

    Byte-level files (GPT-2, GPT-NeoX 20B, ours) decode to exact bytes. Others are decoded by the library, which may not
    give back the very text that went in.
    """

    name = "bpe"
    encodes_slowly = True

    def __init__(self, values: dict[str, Any], source: str = "the tokenizer"):
        """Make the tokenizer that `values`, the content of a `tokenizers` JSON file, describes."""
        from tokenizers import Tokenizer as Library

        try:
            # from_buffer, not from_str: it refuses with a ValueError, the other with a bare Exception
            self._library = Library.from_buffer(json.dumps(values).encode())
        except ValueError as error:
            raise SpikegptError(f"{source} is not a tokenizer that the tokenizers library reads: {error}") from None
        self._library.no_truncation()
        self._library.no_padding()
        self._values = values
        self.vocabulary: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        """name -> id, also of what is no token"""
        self._tokens = {id for name, id in self.vocabulary.items() if not name.startswith(NO_TOKEN)}
        # ids may have holes: the highest counts, so that every id is below vocab_size
        self.vocab_size = max(self._tokens, default=-1) + 1
        if self.vocab_size == 0:
            raise SpikegptError(f"{source} has an empty vocabulary; give a trained tokenizer")
        self._bytes = self._token_bytes() if (values.get("decoder") or {}).get("type") == "ByteLevel" else None

    @classmethod
    def train(cls, text: bytes | Iterable[bytes], vocab_size: int) -> "BPETokenizer":
        """Return a byte-level BPE of at most `vocab_size` tokens, fewer if the text has no more pairs.

        Equal for equal text, which is bytes, or blocks of bytes in order, wherever they are cut.

        Raises:
            SpikegptError: vocab_size is below 256, or the text is not UTF-8.
        """
        if vocab_size < 256:
            raise SpikegptError(
                f"a byte-level BPE needs a vocabulary of at least 256, got {vocab_size}; use the byte tokenizer instead"
            )
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers, trainers

        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=sys.stderr.isatty(),
        )
        library.train_from_iterator(training_pieces(blocks_of(text)), trainer)
        return cls(json.loads(library.to_str()))

    @classmethod
    def from_file(cls, path: str | Path) -> "BPETokenizer":
        """Return the tokenizer of a Hugging Face `tokenizers` JSON file, such as GPT-NeoX's 20B_tokenizer.json.

        Raises:
            SpikegptError: missing, not JSON, or not of the library.
        """
        values = read_values(path)
        check_values(values, str(path))
        if "model" not in values:
            raise SpikegptError(
                f"{path} is a {values['tokenizer']} tokenizer, not of the tokenizers library; "
                "read it with load_tokenizer"
            )
        return cls(values, str(path))

    def _encode(self, text: bytes) -> np.ndarray:
        """The ids; special tokens spelled out in the text become their ids, none is added. Refuses what is no UTF-8."""
        encoded = [np.empty(0, self.dtype)]
        for piece in strings(cut_pieces([text], PAIR_PIECE_BYTES, self.next_cut)):
            # nearly every word has been seen before: looking it up takes a fraction of the time of the library
            words = self._cuts.split(piece)
            known = self._known
            new = [word for word in dict.fromkeys(words) if word not in known]
            found = self._library.encode_batch_fast(new, add_special_tokens=False)
            for word, one in zip(new, found, strict=True):
                if not self._tokens.issuperset(one.ids):
                    self._refuse(word)
                known[word] = np.array(one.ids, self.dtype).tobytes()
            encoded.append(np.frombuffer(b"".join(map(known.__getitem__, words)), self.dtype))
            for word in new:
                # long ones, such as a text without any place to cut, do not come again
                if len(word) > LONGEST_KNOWN_WORD:
                    del known[word]
            if len(known) > KNOWN_WORDS:
                known.clear()
        return np.concatenate(encoded)

    def _refuse(self, text: str) -> None:
        found = self._library.encode(text, add_special_tokens=False)
        begin, end = next(place for id, place in zip(found.ids, found.offsets, strict=True) if id not in self._tokens)
        raise SpikegptError(
            f"{text[begin:end]!r} is no token of the alphabet; "
            "remove it, or train with the byte tokenizer, which takes any text"
        )

    def next_cut(self, text: bytes | bytearray, start: int) -> int | None:
        return next_pair_cut(text, start, self._cuts)

    @cached_property
    def has_token(self) -> np.ndarray:
        has_token = np.zeros(self.vocab_size, np.bool_)
        has_token[list(self._tokens)] = True
        return has_token

    @cached_property
    def _known(self) -> dict[str, bytes]:
        """What lies between two places to cut -> its ids; emptied when it gets long."""
        return {}

    @cached_property
    def _cuts(self) -> re.Pattern[str]:
        """Matches the places where a cut changes no token of this tokenizer."""
        # what holds for an example of a cut, holds for all where words are taken apart before anything is looked up
        is_bpe = self._values["model"].get("type", "BPE") == "BPE"
        if self._library.pre_tokenizer is None or self._bytes is None or not is_bpe:
            return pair_pattern(())
        added, everywhere = self._library.get_added_tokens_decoder().values(), pair_pattern(PAIR_CUTS)
        # an added token that takes the spaces after it, or holds a place to cut, perhaps only before some word
        if any(token.rstrip or everywhere.search(token.content + "a") for token in added):
            return pair_pattern(())
        return pair_pattern(cut for cut in PAIR_CUTS if self._splits_at(*cut))

    def _splits_at(self, before: str, after: str) -> bool:
        """Whether the library takes both texts apart as it takes their sum apart."""
        normalizer, split = self._library.normalizer, self._library.pre_tokenizer.pre_tokenize_str
        # some normalizers put a space before every text, or take it away
        if normalizer is not None and any(normalizer.normalize_str(text) != text for text in (before, after)):
            return False
        return [piece for piece, _ in split(before + after)] == [
            piece for text in (before, after) for piece, _ in split(text)
        ]

    def _decode(self, ids: np.ndarray) -> bytes:
        if self._bytes is None:
            return self._library.decode(ids[self.has_token[ids]].tolist(), skip_special_tokens=False).encode()
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def _token_bytes(self) -> list[bytes]:
        """The bytes of each id; what is no token has none."""
        byte_of, table = {letter: byte for byte, letter in enumerate(byte_letters())}, [b""] * self.vocab_size
        # added tokens are spelled as they are, and go before those of the model
        added = self._library.get_added_tokens_decoder().keys()
        for token, id in self.vocabulary.items():
            if id in self._tokens:
                is_letters = id not in added and all(letter in byte_of for letter in token)
                table[id] = bytes(byte_of[letter] for letter in token) if is_letters else token.encode()
        return table

    def stream(self) -> TextStream:
        return TextStream(self) if self._bytes is not None else _LibraryStream(self, self._library)

    def to_json(self) -> dict[str, Any]:
        return self._values


def training_pieces(blocks: Iterable[bytes]) -> Iterator[str]:
    """Yield a text in the pieces that byte pairs are learned from: cut between words, and within very long ones.

    Raises:
        SpikegptError: the text is not UTF-8.
    """
    everywhere = pair_pattern(PAIR_CUTS)
    for piece in strings(
        cut_pieces(blocks, PAIR_PIECE_BYTES, lambda held, start: next_pair_cut(held, start, everywhere))
    ):
        start = 0
        for word in _LONG_WORD.finditer(piece):
            yield piece[start : word.end()]
            start = word.end()
        yield piece[start:]


class _LibraryStream(TextStream):
    """As TextStream, by the library's DecodeStream: for tokens that depend on their neighbours and so have no bytes."""

    def __init__(self, tokenizer: BPETokenizer, library: Any):
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._library, self._stream = tokenizer, library, DecodeStream()
        self._pending: list[int] = []

    def push(self, id: int) -> str:
        self._tokenizer.decode([id])
        text = self._stream.step(self._library, int(id))
        self._pending = [*self._pending, id] if text is None else []
        return text or ""

    def flush(self) -> str:
        return self._tokenizer.decode(self._pending).decode()


def byte_letters() -> list[str]:
    """Return the letter that stands for each byte in a byte-level vocabulary, bytes 0 to 255.

    Source: Radford et al. 2019, GPT-2, bytes_to_unicode: visible Latin-1 letters stand for themselves, the rest follow
    from U+0100.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]
