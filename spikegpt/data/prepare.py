"""From texts to tokens: the one door, `prepare`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common.errors import SpikegptError, Warn, warn_on_stderr
from .cutting import NOT_UTF8
from .sources import PYTHON_DOCS, Corpus, cache_folder, read_corpus, source_paths
from .splits import SPLITS
from .text import Text
from .tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer
from .tokens.binidx import is_binidx
from .tokens.pretokenised import prepare_binidx
from .tokens.token_file import TokenData, read_header, write_token_file

# byte pairs of a longer train split are learned from this much of it, in so many parts spread evenly over it
TRAINING_BYTES, TRAINING_PARTS = 1 << 27, 256
# those that are made here; any other name is a path
TOKENIZERS = ("byte", "char", "bpe")


def prepare(
    source: str | Path | Iterable[str | Path],
    tokenizer: str | Path | Tokenizer,
    cache_dir: Path | None = None,
    bpe_vocab_size: int = 4096,
    warn: Warn = warn_on_stderr,
    text_column: str = "text",
    processes: int | None = None,
) -> TokenData:
    """Return the tokens of a corpus, from the token file in `cache_dir` if it is whole and of this text and tokenizer.

    Args:
        source: as for `read_corpus`; or one PREFIX.bin, PREFIX.idx or PREFIX with the tokens of Megatron-LM or RWKV-LM,
            which are used where they are, split 90 / 5 / 5 between documents.
        tokenizer: "byte"; "char", whose alphabet is that of the whole corpus, valid and test included; "bpe", trained
            on the train split only, or on TRAINING_BYTES of it; the path of a tokenizer JSON; or a tokenizer.
        cache_dir: default ~/.cache/spikegpt.
        text_column: of JSONL, CSV and TSV files.
        processes: that encode a long text, at least 1; default all CPUs.

    Raises:
        SpikegptError: the corpus or the tokenizer cannot be read, they do not fit each other, or the cache cannot be
            written.
    """
    paths = source_paths(source)
    if paths is not None and any(map(is_binidx, paths)):
        return prepare_binidx(paths, tokenizer)
    cache_dir = cache_folder(cache_dir)
    corpus = read_corpus(PYTHON_DOCS if paths is None else paths, text_column, cache_dir, warn)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        made = _make_tokenizer(tokenizer, corpus, cache_dir, bpe_vocab_size, warn)
        slug = re.sub(r"[^\w.-]+", "_", corpus.name)[:64]
        path = cache_dir / f"{slug}-{made.name}-{corpus.sha256[:12]}-{made.fingerprint[:12]}.tokens"
        found = _reusable(path, corpus, made, warn)
        if found is None:
            write_token_file(path, corpus, made, warn, processes)
            found = read_header(path)
    except SpikegptError as error:
        # what is encoded piece by piece does not know its file
        faults = (corpus.split(name).first_fault() for name in SPLITS) if NOT_UTF8 in str(error) else iter([])
        if (fault := next(filter(None, faults), None)) is None:
            raise
        raise SpikegptError(f"{fault}; convert it, or use the byte tokenizer, which takes any text") from None
    except OSError as error:
        advice = "free space or choose another folder"
        raise SpikegptError(f"cannot write to the cache {cache_dir}: {error.strerror or error}; {advice}") from error
    header, start = found
    return TokenData(path=path, tokenizer=made, header=header, start=start)


def _make_tokenizer(
    which: str | Path | Tokenizer, corpus: Corpus, cache_dir: Path, bpe_vocab_size: int, warn: Warn
) -> Tokenizer:
    if isinstance(which, Tokenizer):
        return which
    if which == "byte":
        return ByteTokenizer()
    if which == "char":
        return CharTokenizer.from_text(*(corpus.split(name).blocks() for name in SPLITS))
    if which != "bpe":
        return load_tokenizer(which)
    stem = f"bpe{bpe_vocab_size}-{corpus.train_sha256[:12]}"
    # the fingerprint in its name tells whether a stored one is as it was trained
    for path in cache_dir.glob(f"{stem}-*.json"):
        try:
            stored = BPETokenizer.from_file(path)
            if path.stem.endswith(stored.fingerprint[:12]):
                return stored
            warn(f"{path} is not as it was trained; training the tokenizer anew")
        except SpikegptError as error:
            warn(f"{error}; training the tokenizer anew")
    trained = BPETokenizer.train(_sample(corpus.train).blocks(), bpe_vocab_size)
    trained.save(cache_dir / f"{stem}-{trained.fingerprint[:12]}.json")
    return trained


def _sample(text: Text) -> Text:
    """The text, or evenly spread parts of a long one: the counts of all its words do not fit into memory."""
    if len(text) <= TRAINING_BYTES:
        return text
    size = TRAINING_BYTES // TRAINING_PARTS
    starts = [len(text) * part // TRAINING_PARTS for part in range(TRAINING_PARTS)]
    return Text.joined((text.cut(*map(text.next_character, (start, start + size))) for start in starts), b"\n")


def _reusable(path: Path, corpus: Corpus, tokenizer: Tokenizer, warn: Warn) -> tuple[dict[str, Any], int] | None:
    """What `read_header` says of the token file, if it is whole and of this text, split and tokenizer."""
    if not path.exists():
        return None
    try:
        header, start = read_header(path)
        is_same_split = all(header["splits"][name]["bytes"] == len(corpus.split(name)) for name in SPLITS)
        if (header["text_sha256"], header["tokenizer_fingerprint"]) == (
            corpus.sha256,
            tokenizer.fingerprint,
        ) and is_same_split:
            return header, start
        fault = "is of another text, split or tokenizer"
    except SpikegptError as error:
        fault = str(error)
    warn(f"token file {path} {fault}; writing it anew")
    return None
