"""Tokens in the files of Megatron-LM and RWKV-LM: train on those of others, and write ours for others.

The format: binidx.py.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import SpikegptError, in_words, warn_on_stderr
from ...common.progress import Progress
from ..cutting import cut_pieces
from ..documents import document_blocks
from ..folders import files_of
from ..sources import PYTHON_DOCS, read_corpus, source_paths
from ..splits import SPLITS, own_splits
from ..text import Text
from ..tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from ..tokenizers.contract import PAIR_PIECE_BYTES
from ..tokenizers.encoding import encode_pieces, useful_processes
from .binidx import Binidx, read_binidx, write_binidx
from .token_file import TokenData, count_characters

COUNTED_TOKENS = 1 << 22


def prepare_binidx(paths: list[Path], which: str | Path | Tokenizer) -> TokenData:
    """Return the tokens of PREFIX.bin where they are, split 90 / 5 / 5 between documents; all are read, to be counted.

    Args:
        which: the tokenizer that made them: "byte", the path of a tokenizer JSON, or a tokenizer.

    Raises:
        SpikegptError: not one source, a corrupt one, too short, or with tokens outside the vocabulary.
    """
    if len(paths) > 1:
        raise SpikegptError(f"{len(paths)} sources with tokens among them; give one PREFIX.bin alone, or texts")
    if which in ("char", "bpe"):
        raise SpikegptError(
            f"{paths[0]} holds tokens already: "
            f"give the file of the tokenizer that made them, --tokenizer FILE, not {which!r}"
        )
    tokenizer = which if isinstance(which, Tokenizer) else ByteTokenizer() if which == "byte" else load_tokenizer(which)
    found = read_binidx(paths[0])
    splits = {
        name: {"offset": first * found.tokens.itemsize, "tokens": last - first}
        | _measure(found, first, last, tokenizer)
        for name, (first, last) in _split_documents(found).items()
    }
    header: dict[str, Any] = {
        "corpus": found.path.name,
        "metadata": {"files": [found.path.name], "documents": len(found.starts)},
        # only the tokens are here
        "text_sha256": None,
        "tokens_sha256": hashlib.sha256(np.ascontiguousarray(found.tokens).data).hexdigest(),
        "dtype": found.tokens.dtype.str,
        "splits": splits,
    }
    return TokenData(path=found.path, tokenizer=tokenizer, header=header, start=0)


def _split_documents(found: Binidx) -> dict[str, tuple[int, int]]:
    """First token and end of each split: 90 / 5 / 5 %, moved on to the next document where enough is left then."""
    total = len(found.tokens)
    bounds = [total * percent // 100 for percent in (90, 95)]
    moved = [
        int(found.starts[place]) if (place := np.searchsorted(found.starts, bound)) < len(found.starts) else total
        for bound in bounds
    ]
    for valid, test in (moved, bounds):
        if min(valid, test - valid, total - test) >= 2:
            return {"train": (0, valid), "valid": (valid, test), "test": (test, total)}
    raise SpikegptError(f"{found.path} has {total} tokens, too few for three splits; give more text")


def _measure(found: Binidx, first: int, last: int, tokenizer: Tokenizer) -> dict[str, int]:
    """Bytes and characters of the text of tokens [first, last), all of which must be in the vocabulary."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for start in range(first, last, COUNTED_TOKENS):
        chunk = found.tokens[start : min(start + COUNTED_TOKENS, last)]
        for extreme in (int(chunk.min()), int(chunk.max())):
            if not 0 <= extreme < tokenizer.vocab_size:
                raise SpikegptError(
                    f"{found.path} holds the token {extreme}, the tokenizer {tokenizer.name} has a vocabulary of "
                    f"{tokenizer.vocab_size}; "
                    "give the tokenizer that made these tokens: --tokenizer FILE"
                )
        counts += np.bincount(chunk, minlength=tokenizer.vocab_size)
    used = np.flatnonzero(counts).tolist()
    texts = [tokenizer.decode([token]) for token in used]
    return {
        "bytes": sum(len(text) * int(counts[token]) for token, text in zip(used, texts, strict=True)),
        "characters": sum(count_characters(text) * int(counts[token]) for token, text in zip(used, texts, strict=True)),
    }


def export_binidx(
    source: str | Path | Iterable[str | Path],
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    text_column: str = "text",
    end_token: int | None = None,
    processes: int | None = None,
) -> Binidx:
    """Write the tokens of `source` as PREFIX.bin and PREFIX.idx: a document for every file, or line of a JSONL file.

    Args:
        end_token: id put after each document; default none.

    Raises:
        SpikegptError: the source cannot be read, does not fit the tokenizer, or the files are there or cannot be
            written.
    """
    if end_token is not None and not 0 <= end_token < tokenizer.vocab_size:
        raise SpikegptError(
            f"end token {end_token} is outside the vocabulary of {tokenizer.vocab_size} "
            f"(0 to {tokenizer.vocab_size - 1})"
        )
    texts, size = _documents(source, text_column)
    ends: deque[bool] = deque()

    def pieces() -> Iterator[bytes]:
        for piece, is_last in _marked(texts, tokenizer):
            ends.append(is_last)
            yield piece

    def tokens() -> Iterator[tuple[np.ndarray, bool]]:
        with Progress(f"tokenising into {prefix.name}", size) as progress:
            for piece, ids in encode_pieces(tokenizer, pieces(), useful_processes(tokenizer, size, processes)):
                progress.advance(len(piece))
                is_last = ends.popleft()
                yield np.append(ids, end_token) if is_last and end_token is not None else ids, is_last

    try:
        return write_binidx(prefix, tokens(), tokenizer.vocab_size)
    except OSError as error:
        raise SpikegptError(f"cannot write {prefix}.bin and .idx: {in_words(error)}") from error


def _documents(source: str | Path | Iterable[str | Path], text_column: str) -> tuple[Iterator[Iterable[bytes]], int]:
    """(the blocks of each document, bytes of all files)."""
    paths = source_paths(source)
    if paths is None:
        corpus = read_corpus(PYTHON_DOCS)
        return iter([chain.from_iterable(corpus.split(name).blocks() for name in SPLITS)]), len(corpus)
    # valid and test stand last, so that whoever splits the tokens by position does not train on them
    files = files_of(paths, warn_on_stderr)
    ordered = list(chain.from_iterable(own_splits(files, warn_on_stderr).values())) or files
    documents = chain.from_iterable(document_blocks(file, text_column) for file in ordered)
    return documents, sum(len(Text.of_file(file)) for file in ordered)


def _marked(texts: Iterable[Iterable[bytes]], tokenizer: Tokenizer) -> Iterator[tuple[bytes, bool]]:
    """Yield (piece, whether its document ends with it) of each document, empty ones left out."""
    for blocks in texts:
        held = b""
        for piece in cut_pieces(blocks, PAIR_PIECE_BYTES, tokenizer.next_cut):
            if held:
                yield held, False
            held = piece
        if held:
            yield held, True
