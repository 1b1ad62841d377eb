"""Text to token ids and back: bytes, Unicode characters, or byte pairs (BPE), behind one interface.

Text is bytes on both sides, so that nothing is lost and bits per byte mean the same for every tokenizer.
The Hugging Face `tokenizers` library does the byte pairs; it is imported only when one is made, for it takes time.
"""

import codecs
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ...common.errors import SpikegptError
from ...common.files import write_atomically
from ..cutting import PAIR_CUTS, cut_pieces, next_character_cut, next_pair_cut, pair_pattern, strings

FORMAT = 1
# encoded at a time: bounds memory
CHARACTER_PIECE_BYTES, PAIR_PIECE_BYTES = 1 << 20, 1 << 17
# words whose pairs are remembered, about 50 MB; longer ones, in characters, are not
KNOWN_WORDS, LONGEST_KNOWN_WORD = 1 << 18, 64


class Tokenizer(ABC):
    """What the three tokenizers have in common. A tokenizer never changes once it is made."""

    name: ClassVar[str]
    encodes_slowly: ClassVar[bool] = False
    """whether long texts are worth several processes"""
    vocab_size: int

    @abstractmethod
    def next_cut(self, text: bytes, start: int) -> int | None:
        """Return the first place at or after `start` (at least 1) where `text` may be cut without changing its tokens.

        `text` may be the beginning of a longer one: a place that this cannot decide is left out. None if there is no
        place.
        """

    @abstractmethod
    def encode(self, text: bytes) -> np.ndarray:
        """Return the ids (N,) of `text`, in the smallest unsigned type that holds vocab_size ids."""

    @abstractmethod
    def _decode(self, ids: np.ndarray) -> bytes:
        """Return the bytes of `ids` (N,), all within the vocabulary."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return what `load_tokenizer` makes the same tokenizer from."""

    def decode(self, ids: ArrayLike) -> bytes:
        """Return the bytes of `ids` (N,).

        Raises:
            SpikegptError: an id is outside the vocabulary.
        """
        ids = np.asarray(ids)
        if ids.size == 0:
            return b""
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
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON: equal for equal tokenizers."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        write_atomically(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False))

    def stream(self) -> "TextStream":
        """Return a decoder that takes one id at a time."""
        return TextStream(self)


class TextStream:
    """Text from ids, one at a time: whole characters only; U+FFFD stands for bytes that are no UTF-8, never for half a
    character."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Return the text that `id` completes, often "" in the middle of a character."""
        return self._decoder.decode(self._tokenizer.decode([id]))

    def flush(self) -> str:
        """Return what is left: "", or U+FFFD for a character that was never finished."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer in a JSON file: one that `save` wrote, or any file of the Hugging Face `tokenizers` library.

    Raises:
        SpikegptError: missing, not JSON, or not a tokenizer.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SpikegptError(
            f"cannot read the tokenizer {path}: {error.strerror}; give byte, char, bpe or a tokenizer.json"
        ) from None
    except ValueError as error:
        raise SpikegptError(f"{path} is not JSON ({error}); give a tokenizer.json") from None
    return tokenizer_of(values, str(path))


def tokenizer_of(values: Any, source: str) -> Tokenizer:
    """Return the tokenizer that `values`, the content of a JSON file, describe; `source` stands in the errors.

    Raises:
        SpikegptError: not a tokenizer.
    """
    if not isinstance(values, dict) or not values.keys() & {"model", "tokenizer"}:
        raise SpikegptError(
            f"{source} is not a tokenizer: it has neither a 'model' (Hugging Face tokenizers) nor a 'tokenizer' "
            f"(spikegpt)"
        )
    if "model" in values:
        return BPETokenizer(values, source)
    if values.get("format") != FORMAT:
        raise SpikegptError(
            f"{source} has format {values.get('format')}, this spikegpt reads {FORMAT}; install a newer spikegpt"
        )
    if values["tokenizer"] == "byte":
        return ByteTokenizer()
    if values["tokenizer"] == "char":
        return CharTokenizer(values.get("characters", ""))
    raise SpikegptError(
        f"{source} holds a tokenizer {values['tokenizer']!r}, known are byte and char; install a newer spikegpt"
    )


class ByteTokenizer(Tokenizer):
    """One token per byte: takes any text, needs no vocabulary."""

    name = "byte"
    vocab_size = 256

    def next_cut(self, text: bytes, start: int) -> int | None:
        return start if start < len(text) else None

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def _decode(self, ids: np.ndarray) -> bytes:
        return ids.astype(np.uint8).tobytes()

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "tokenizer": self.name}


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
                f"the alphabet has {len(characters)} characters, {len(set(characters))} of them different; list each "
                f"once"
            )
        self.characters, self.vocab_size = characters, len(characters)
        # one row beyond the alphabet, for every character that lies above it
        self._ids = np.full(int(self._codes.max()) + 2, -1, np.int32)
        self._ids[self._codes] = np.arange(self.vocab_size)

    @classmethod
    def from_text(cls, *texts: bytes | Iterable[bytes]) -> "CharTokenizer":
        """Return the tokenizer whose alphabet is every character of `texts`, sorted; a text is bytes, or blocks of
        bytes in order.

        Raises:
            SpikegptError: a text is not UTF-8, or all are empty.
        """
        seen = np.zeros(0x110000, np.bool_)
        for text in texts:
            for characters in _characters(text):
                seen[_code_points(characters)] = True
        return cls("".join(map(chr, np.flatnonzero(seen).tolist())))

    def next_cut(self, text: bytes, start: int) -> int | None:
        return next_character_cut(text, start)

    def encode(self, text: bytes) -> np.ndarray:
        """Return one id per character.

        Raises:
            SpikegptError: the text is not UTF-8, or holds a character outside the alphabet.
        """
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
        # ids may have holes: the highest counts, so that every id is below vocab_size
        self.vocab_size = max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.vocab_size == 0:
            raise SpikegptError(f"{source} has an empty vocabulary; give a trained tokenizer")
        self._bytes = self._token_bytes() if (values.get("decoder") or {}).get("type") == "ByteLevel" else None

    @classmethod
    def train(cls, text: bytes | Iterable[bytes], vocab_size: int) -> "BPETokenizer":
        """Return a byte-level BPE of at most `vocab_size` tokens, fewer if the text has no more pairs; equal for equal
        text.

        `text` is bytes, or blocks of bytes in order, wherever they are cut.

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
            vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        everywhere = pair_pattern(PAIR_CUTS)
        pieces = cut_pieces(_blocks(text), PAIR_PIECE_BYTES, lambda held, start: next_pair_cut(held, start, everywhere))
        library.train_from_iterator(strings(pieces), trainer)
        return cls(json.loads(library.to_str()))

    @classmethod
    def from_file(cls, path: str | Path) -> "BPETokenizer":
        """Return the tokenizer of a Hugging Face `tokenizers` JSON file, such as GPT-NeoX's 20B_tokenizer.json.

        Raises:
            SpikegptError: missing, not JSON, or not of the library.
        """
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, cls):
            raise SpikegptError(
                f"{path} is a {tokenizer.name} tokenizer, not of the tokenizers library; read it with load_tokenizer"
            )
        return tokenizer

    def encode(self, text: bytes) -> np.ndarray:
        """Return the ids; special tokens spelled out in the text become their ids, none is added.

        Raises:
            SpikegptError: the text is not UTF-8.
        """
        encoded = [np.empty(0, self.dtype)]
        for piece in strings(cut_pieces([text], PAIR_PIECE_BYTES, self.next_cut)):
            # nearly every word has been seen before: looking it up takes a fraction of the time of the library
            words = self._cuts.split(piece)
            known = self._known
            new = [word for word in dict.fromkeys(words) if word not in known]
            found = self._library.encode_batch_fast(new, add_special_tokens=False)
            known |= {word: np.array(one.ids, self.dtype).tobytes() for word, one in zip(new, found, strict=True)}
            encoded.append(np.frombuffer(b"".join(map(known.__getitem__, words)), self.dtype))
            for word in new:
                # long ones, such as a text without any place to cut, do not come again
                if len(word) > LONGEST_KNOWN_WORD:
                    del known[word]
            if len(known) > KNOWN_WORDS:
                known.clear()
        return np.concatenate(encoded)

    def next_cut(self, text: bytes, start: int) -> int | None:
        return next_pair_cut(text, start, self._cuts)

    @cached_property
    def _known(self) -> dict[str, bytes]:
        """What lies between two places to cut -> its ids; emptied when it gets long."""
        return {}

    @cached_property
    def _cuts(self) -> re.Pattern[str]:
        """Matches the places where a cut changes no token of this tokenizer."""
        if self._library.pre_tokenizer is None or self._bytes is None:
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
            return self._library.decode(ids.tolist(), skip_special_tokens=False).encode()
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def _token_bytes(self) -> list[bytes]:
        """The bytes of each id; a hole has none."""
        byte_of, table = {letter: byte for byte, letter in enumerate(byte_letters())}, [b""] * self.vocab_size
        for token, id in self._library.get_vocab(with_added_tokens=False).items():
            table[id] = (
                bytes(byte_of[letter] for letter in token)
                if all(letter in byte_of for letter in token)
                else token.encode()
            )
        # added tokens are spelled as they are, and go before those of the model
        for id, token in self._library.get_added_tokens_decoder().items():
            table[id] = token.content.encode()
        return table

    def stream(self) -> "TextStream | _LibraryStream":
        return TextStream(self) if self._bytes is not None else _LibraryStream(self, self._library)

    def to_json(self) -> dict[str, Any]:
        return self._values


class _LibraryStream:
    """As TextStream, by the library's own DecodeStream: for tokens that depend on their neighbours and so have no bytes
    of their own."""

    def __init__(self, tokenizer: BPETokenizer, library: Any):
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._library, self._decoder, self._pending = tokenizer, library, DecodeStream(), []

    def push(self, id: int) -> str:
        self._tokenizer.decode([id])
        text = self._decoder.step(self._library, int(id))
        self._pending = [*self._pending, id] if text is None else []
        return text or ""

    def flush(self) -> str:
        return self._tokenizer.decode(self._pending).decode()


def _blocks(text: bytes | Iterable[bytes]) -> Iterable[bytes]:
    return [text] if isinstance(text, bytes) else text


def _characters(text: bytes | Iterable[bytes]) -> Iterator[str]:
    """Yield `text` as strings of about CHARACTER_PIECE_BYTES."""
    return strings(cut_pieces(_blocks(text), CHARACTER_PIECE_BYTES, next_character_cut))


def _code_points(characters: str) -> np.ndarray:
    return np.frombuffer(characters.encode("utf-32-le"), np.dtype("<u4"))


def byte_letters() -> list[str]:
    """Return the letter that stands for each byte in a byte-level vocabulary, bytes 0 to 255.

    Source: Radford et al. 2019, GPT-2, bytes_to_unicode: visible Latin-1 letters stand for themselves, the rest follow
    from U+0100.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]
