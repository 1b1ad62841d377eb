"""A tokenised corpus in one memory-mapped file.

8 bytes MAGIC, 8 bytes length of the header (little-endian), the header (JSON, spaces at its end), zeros up to a
multiple of ALIGNMENT, then the tokens of train, valid and test, one after the other; offsets in the header count from
the first token.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import SpikegptError, Warn
from ...common.files import atomic_path
from ...common.json_text import parse_json
from ..sources import Corpus
from ..splits import SPLITS
from ..tokenizers import Tokenizer
from ..tokenizers.encoding import encode_text

FORMAT = 1
MAGIC, ALIGNMENT = b"SPKTOKEN", 64
_SIZES = ("offset", "tokens", "bytes", "characters")


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """A tokenised corpus: the tokenizer, the file's header, and its tokens, memory-mapped from byte `start` on."""

    path: Path
    tokenizer: Tokenizer
    header: dict[str, Any]
    start: int

    def split(self, name: str) -> np.memmap:
        """Return the tokens (N,) of "train", "valid" or "test", read-only."""
        part = self.header["splits"][name]
        return np.memmap(
            self.path, self.header["dtype"], mode="r", offset=self.start + part["offset"], shape=(part["tokens"],)
        )


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a token file and the byte where the tokens start.

    Header and tokens are held against their digests. That reads all tokens, which are about as long as the text, and
    the text is read for its digest every time as well.

    Raises:
        SpikegptError: foreign, truncated, overwritten, or of another format. The message continues a sentence about the
            file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        opening = file.read(len(MAGIC) + 8)
        if len(opening) < len(MAGIC) + 8 or not opening.startswith(MAGIC):
            raise SpikegptError("is not a token file")
        length, size = int.from_bytes(opening[len(MAGIC) :], "little"), path.stat().st_size
        try:
            # never more than the file has, whatever the length says
            header = parse_json(file.read(min(length, size)))
        except ValueError:
            raise SpikegptError("has a broken header") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise SpikegptError("has another format")
        digest = header.pop("header_sha256", None)
        if digest is None:
            raise SpikegptError("is of an older spikegpt and has no digest of its header")
        if digest != _digest_of(header):
            raise SpikegptError("has a header that is not as it was written")
        start = _align(len(opening) + length)
        if size != start + header["tokens_bytes"]:
            raise SpikegptError(f"has {size} bytes instead of {start + header['tokens_bytes']}")
        file.seek(start)
        if hashlib.file_digest(file, "sha256").hexdigest() != header["tokens_sha256"]:
            raise SpikegptError("has tokens that are not as they were written")
    return header, start


def _digest_of(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def write_token_file(
    path: Path, corpus: Corpus, tokenizer: Tokenizer, warn: Warn, processes: int | None = None
) -> None:
    """Write the tokens of `corpus` as they come, in constant memory; `processes` as in `encoding.encode_text`.

    Raises:
        SpikegptError: a text cannot be read, changed meanwhile, does not fit the tokenizer, or a split has fewer than 2
            tokens.
        OSError: the file cannot be written.
    """
    dtype = tokenizer.dtype.newbyteorder("<")
    facts = {
        "format": FORMAT,
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.str,
        "corpus": corpus.name,
        "metadata": corpus.metadata,
        "text_sha256": corpus.sha256,
    }
    text_digest, token_digest = hashlib.sha256(), hashlib.sha256()
    splits, written, is_exact = {}, 0, True
    # the header stands before the tokens and is known after them: room for its longest form is left
    longest = {name: dict.fromkeys(_SIZES, 2**63) for name in SPLITS}
    room = len(_encode_header(facts, longest, 2**63, token_digest.hexdigest(), False))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.seek(_align(len(MAGIC) + 8 + room))
        for name in SPLITS:
            splits[name] = dict.fromkeys(_SIZES, 0) | {"offset": written}
            for piece, ids in encode_text(
                tokenizer, corpus.split(name), processes, f"tokenising {corpus.name}, {name}"
            ):
                payload = ids.astype(dtype, copy=False).tobytes()
                file.write(payload)
                text_digest.update(piece)
                token_digest.update(payload)
                for size, more in zip(_SIZES[1:], (len(ids), len(piece), count_characters(piece)), strict=True):
                    splits[name][size] += more
                written += len(payload)
                # the train split is not read back, for it is long and like the others
                is_exact &= name == "train" or tokenizer.decode(ids) == piece
            if splits[name]["tokens"] < 2:
                raise SpikegptError(
                    f"corpus {corpus.name}: split {name!r} has {splits[name]['tokens']} token(s), needed are 2; "
                    "give more text"
                )
        if text_digest.hexdigest() != corpus.sha256:
            raise SpikegptError(f"corpus {corpus.name} changed while it was tokenised; run again once nobody writes it")
        header = _encode_header(facts, splits, written, token_digest.hexdigest(), is_exact)
        file.seek(0)
        file.write(MAGIC + room.to_bytes(8, "little") + header.ljust(room))
    if not is_exact:
        warn(
            f"tokenizer {tokenizer.name} does not give the text of {corpus.name} back exactly; "
            "figures per byte are of the text it gives"
        )


def _encode_header(
    facts: dict[str, Any], splits: dict[str, Any], tokens_bytes: int, tokens_sha256: str, is_exact: bool
) -> bytes:
    header = {
        **facts,
        "tokens_sha256": tokens_sha256,
        "tokens_bytes": tokens_bytes,
        "is_exact": is_exact,
        "splits": splits,
    }
    return json.dumps({**header, "header_sha256": _digest_of(header)}).encode()


def count_characters(text: bytes) -> int:
    """Return how many characters UTF-8 bytes hold: every byte that does not continue one begins one."""
    return int(np.count_nonzero((np.frombuffer(text, np.uint8) & 0xC0) != 0x80))
