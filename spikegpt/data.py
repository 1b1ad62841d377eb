"""From texts to tokens: read a corpus, split it, tokenise it once into a memory-mapped file.

The file: 8 bytes MAGIC, 8 bytes length of the header (little-endian), the header (JSON), zeros up to a multiple of ALIGNMENT,
then the tokens of train, valid and test, one after the other; offsets in the header count from the first token.
"""

import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import SpikegptError, Warn, warn_on_stderr
from .files import atomic_path
from .tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer, next_character

FORMAT = 1
MAGIC, ALIGNMENT = b"SPKTOKEN", 64
SPLITS = ("train", "valid", "test")
PYTHON_DOCS = "python-docs"
TEXT_SUFFIXES = (".txt", ".md", ".text")
_SPLIT_OF_STEM = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "spikegpt"


# --- corpora -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text in three parts, and where it comes from."""

    name: str
    train: bytes
    valid: bytes
    test: bytes
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for split in SPLITS:
            if len(self.split(split)) < 2:
                sizes = ", ".join(f"{split} {len(self.split(split))}" for split in SPLITS)
                raise SpikegptError(f"corpus {self.name}: every split needs at least 2 bytes, found {sizes}; give more text")

    def split(self, name: str) -> bytes:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    @cached_property
    def sha256(self) -> str:
        """Of the three splits joined, which for a single text file is the file."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(self.split(split))
        return digest.hexdigest()


def read_corpus(source: str | Path | Iterable[str | Path]) -> Corpus:
    """Return the corpus that `source` names, split into train, valid and test.

    Args:
        source: "python-docs", the documentation texts that come with Python; or paths of text files; or a folder: all its
            *.txt, *.md and *.text files, at any depth, sorted by path. A folder with exactly the files train, valid (or
            validation, or val) and test is used as it is split; everything else is split 90 / 5 / 5 by position.

    Raises:
        SpikegptError: a file or folder is missing or unreadable, a folder holds no text or half a split, or a split has
            fewer than 2 bytes.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    if sources == [PYTHON_DOCS]:
        return _python_docs()
    paths = [Path(path) for path in sources]
    if not paths:
        raise SpikegptError(f"no source given; name text files, a folder, or {PYTHON_DOCS!r}")
    if len(paths) == 1 and paths[0].is_dir():
        return _read_folder(paths[0])
    files = [file for path in paths for file in (_text_files(path) if path.is_dir() else [path])]
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    return split_text(name, b"\n".join(map(_read, files)), {"files": [file.name for file in files]})


def split_text(name: str, text: bytes, metadata: dict[str, Any] | None = None) -> Corpus:
    """Return `text` cut into its first 90 %, the next 5 % and the last 5 %, each cut moved forward to a character's first byte."""
    if len(text.strip()) < 2:
        raise SpikegptError(f"corpus {name} has {len(text)} byte(s) of text; give a text of at least some hundred characters")
    valid, test = (next_character(text, len(text) * percent // 100) for percent in (90, 95))
    return Corpus(name=name, train=text[:valid], valid=text[valid:test], test=text[test:], metadata=metadata or {})


def _python_docs() -> Corpus:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise SpikegptError(f"this Python ({sys.executable}) comes without pydoc_data; name a text file as the source instead") from None
    text = "\n\n".join(topics[topic].strip("\n") for topic in sorted(topics)) + "\n"
    origin = f"pydoc_data.topics of Python {platform.python_version()}"
    return split_text(PYTHON_DOCS, text.encode(), {"python": platform.python_version(), "origin": origin, "topics": len(topics)})


def _read_folder(folder: Path) -> Corpus:
    files = _text_files(folder)
    names = [file.relative_to(folder).as_posix() for file in files]
    found = [_SPLIT_OF_STEM[file.stem] for file in files if file.stem in _SPLIT_OF_STEM]
    name = folder.resolve().name
    if len(files) == 3 and sorted(found) == sorted(SPLITS):
        splits = {_SPLIT_OF_STEM[file.stem]: _read(file) for file in files}
        return Corpus(name=name, **splits, metadata={"files": names})
    # joining a train and a test file and splitting them anew would surprise whoever split them
    if len(set(found)) > 1:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise SpikegptError(f"{folder} looks split but holds {listed}; keep exactly train, valid and test in it, or name the files")
    return split_text(name, b"\n".join(map(_read, files)), {"files": names})


def _text_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in TEXT_SUFFIXES and path.is_file())
    if not files:
        wanted = ", ".join("*" + suffix for suffix in TEXT_SUFFIXES)
        raise SpikegptError(f"folder {folder} holds no {wanted} file; name the files themselves")
    return files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpikegptError(f"cannot read {path}: {error.strerror}; give a text file, a folder of them, or {PYTHON_DOCS!r}") from None


# --- token files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """A tokenised corpus: the tokenizer, the header of the token file, and its tokens, memory-mapped from byte `start` on."""

    path: Path
    tokenizer: Tokenizer
    header: dict[str, Any]
    start: int

    def split(self, name: str) -> np.memmap:
        """Return the tokens (N,) of "train", "valid" or "test", read-only."""
        part = self.header["splits"][name]
        return np.memmap(self.path, self.header["dtype"], mode="r", offset=self.start + part["offset"], shape=(part["tokens"],))


def prepare(
    source: str | Path | Iterable[str | Path],
    tokenizer: str | Path | Tokenizer,
    cache_dir: Path | None = None,
    bpe_vocab_size: int = 4096,
    warn: Warn = warn_on_stderr,
) -> TokenData:
    """Return the tokens of a corpus, from the token file in `cache_dir` if it is whole and of this text and tokenizer.

    Args:
        source: as for `read_corpus`.
        tokenizer: "byte"; "char", whose alphabet is that of the whole corpus, valid and test included; "bpe", trained on the train
            split only; the path of a tokenizer JSON; or a tokenizer.
        cache_dir: default ~/.cache/spikegpt.

    Raises:
        SpikegptError: the corpus or the tokenizer cannot be read, they do not fit each other, or the cache cannot be written.
    """
    corpus, cache_dir = read_corpus(source), cache_dir or default_cache_dir()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        made = _make_tokenizer(tokenizer, corpus, cache_dir, bpe_vocab_size, warn)
        slug = re.sub(r"[^\w.-]+", "_", corpus.name)[:64]
        path = cache_dir / f"{slug}-{made.name}-{corpus.sha256[:12]}-{made.fingerprint[:12]}.tokens"
        if not _is_reusable(path, corpus, made, warn):
            _write_tokens(path, corpus, made, warn)
        header, start = read_header(path)
    except OSError as error:
        advice = "free space or choose another folder"
        raise SpikegptError(f"cannot write to the cache {cache_dir}: {error.strerror or error}; {advice}") from error
    return TokenData(path=path, tokenizer=made, header=header, start=start)


def _make_tokenizer(which: str | Path | Tokenizer, corpus: Corpus, cache_dir: Path, bpe_vocab_size: int, warn: Warn) -> Tokenizer:
    if isinstance(which, Tokenizer):
        return which
    if which == "byte":
        return ByteTokenizer()
    if which == "char":
        return CharTokenizer.from_text(corpus.train, corpus.valid, corpus.test)
    if which != "bpe":
        return load_tokenizer(which)
    path = cache_dir / f"bpe{bpe_vocab_size}-{hashlib.sha256(corpus.train).hexdigest()[:12]}.json"
    if path.exists():
        try:
            return BPETokenizer.from_file(path)
        except SpikegptError as error:
            warn(f"{error}; training the tokenizer anew")
    trained = BPETokenizer.train(corpus.train, bpe_vocab_size)
    trained.save(path)
    return trained


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a token file and the byte where the tokens start.

    Raises:
        SpikegptError: foreign, truncated, or of another format. The message continues a sentence about the file.
    """
    with path.open("rb") as file:
        opening = file.read(len(MAGIC) + 8)
        if len(opening) < len(MAGIC) + 8 or not opening.startswith(MAGIC):
            raise SpikegptError("is not a token file")
        length, size = int.from_bytes(opening[len(MAGIC) :], "little"), path.stat().st_size
        try:
            # never more than the file has, whatever the length says
            header = json.loads(file.read(min(length, size)))
        except ValueError:
            raise SpikegptError("has a broken header") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise SpikegptError("has another format")
    start = _align(len(opening) + length)
    if size != start + header["tokens_bytes"]:
        raise SpikegptError(f"has {size} bytes instead of {start + header['tokens_bytes']}")
    return header, start


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _is_reusable(path: Path, corpus: Corpus, tokenizer: Tokenizer, warn: Warn) -> bool:
    if not path.exists():
        return False
    try:
        header, _ = read_header(path)
        is_same_split = all(header["splits"][name]["bytes"] == len(corpus.split(name)) for name in SPLITS)
        if (header["text_sha256"], header["tokenizer_fingerprint"]) == (corpus.sha256, tokenizer.fingerprint) and is_same_split:
            return True
        fault = "is of another text, split or tokenizer"
    except SpikegptError as error:
        fault = str(error)
    warn(f"token file {path} {fault}; writing it anew")
    return False


def _write_tokens(path: Path, corpus: Corpus, tokenizer: Tokenizer, warn: Warn) -> None:
    dtype = tokenizer.dtype.newbyteorder("<")
    splits, payload = {}, []
    for name in SPLITS:
        text = corpus.split(name)
        ids = tokenizer.encode(text).astype(dtype, copy=False)
        if len(ids) < 2:
            raise SpikegptError(f"corpus {corpus.name}: split {name!r} has {len(ids)} token(s), needed are 2; give more text")
        offset = sum(part.nbytes for part in payload)
        splits[name] = {"offset": offset, "tokens": len(ids), "bytes": len(text), "characters": count_characters(text)}
        payload.append(ids)
    is_exact = all(tokenizer.decode(ids) == corpus.split(name) for name, ids in zip(SPLITS[1:], payload[1:], strict=True))
    if not is_exact:
        warn(f"tokenizer {tokenizer.name} does not give the text of {corpus.name} back exactly; figures per byte are of the text it gives")
    header = {
        "format": FORMAT,
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.str,
        "corpus": corpus.name,
        "metadata": corpus.metadata,
        "text_sha256": corpus.sha256,
        "tokens_sha256": hashlib.sha256(b"".join(payload)).hexdigest(),
        "tokens_bytes": sum(part.nbytes for part in payload),
        "is_exact": is_exact,
        "splits": splits,
    }
    encoded = json.dumps(header).encode()
    opening = MAGIC + len(encoded).to_bytes(8, "little") + encoded
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(opening.ljust(_align(len(opening)), b"\0"))
        for part in payload:
            file.write(part)


def count_characters(text: bytes) -> int:
    """Return how many characters UTF-8 bytes hold: every byte that does not continue one begins one."""
    return int(np.count_nonzero((np.frombuffer(text, np.uint8) & 0xC0) != 0x80))
