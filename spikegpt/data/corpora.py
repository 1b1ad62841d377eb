"""`spikegpt data`: well-known corpora by name, and any data set of Hugging Face, as a folder that `--data` takes."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.download import fetch
from ..common.errors import SpikegptError, Warn, warn_on_stderr
from ..common.files import atomic_path, sha256_of, write_atomically
from ..common.json_text import parse_json
from ..common.progress import Progress
from .folders import NOTES
from .hub_rows import check_files, own_splits, split_names, texts
from .reading import BLOCK_BYTES, plain_start
from .recall import LEAST_RECALL_BYTES, RECALL, RECALL_BYTES, make_episode, recall_text
from .sources import Corpus, cache_folder
from .splits import SPLITS
from .text import Text


@dataclass(frozen=True, kw_only=True)
class NamedCorpus:
    """Where a corpus is fetched, and which `members` of the archive it is.

    None if it is no archive, one to be split 90 / 5 / 5, or one per split.
    """

    urls: tuple[str, ...]
    file: str
    size: int
    sha256: str
    members: tuple[str, ...] = ()
    about: str


# The checksums are those that independent public projects pin for these files; sizes and md5 sums of enwik8 stand on
# mattmahoney.net/dc/textdata.html too, the WikiText ones in the dataset_infos.json of Hugging Face's former loader.
CORPORA = {
    "enwik8": NamedCorpus(
        urls=("https://mattmahoney.net/dc/enwik8.zip", "http://mattmahoney.net/dc/enwik8.zip"),
        file="enwik8.zip",
        size=36_445_475,
        sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        members=("enwik8",),
        about="first 100 million bytes of the English Wikipedia of March 2006, XML; 90/5/5 million bytes; GFDL",
    ),
    "text8": NamedCorpus(
        urls=("https://mattmahoney.net/dc/text8.zip", "http://mattmahoney.net/dc/text8.zip"),
        file="text8.zip",
        size=31_344_016,
        sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        members=("text8",),
        about="100 million characters of the same, a to z and space only; 90/5/5 million; GFDL",
    ),
    "wikitext-2": NamedCorpus(
        # the address of the paper, on Amazon S3, is gone; these serve the same bytes
        urls=(
            "https://wikitext.smerity.com/wikitext-2-raw-v1.zip",
            "https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip",
        ),
        file="wikitext-2-raw-v1.zip",
        size=4_721_645,
        sha256="ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        members=tuple(f"wikitext-2-raw/wiki.{split}.raw" for split in SPLITS),
        about="good Wikipedia articles, raw, in the published splits, 13 MB; CC BY-SA 3.0",
    ),
    "wikitext-103": NamedCorpus(
        urls=(
            "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
            "https://huggingface.co/datasets/mattdangerw/wikitext-103-raw/resolve/main/wikitext-103-raw-v1.zip",
        ),
        file="wikitext-103-raw-v1.zip",
        size=191_984_949,
        sha256="91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
        members=tuple(f"wikitext-103-raw/wiki.{split}.raw" for split in SPLITS),
        about="as wikitext-2, 545 MB; CC BY-SA 3.0",
    ),
    "tinyshakespeare": NamedCorpus(
        urls=(
            "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        ),
        file="tinyshakespeare.txt",
        size=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        about="scenes of Shakespeare, 1 MB; public domain",
    ),
}


def obtain(name: str, out: Path | None = None, cache_dir: Path | None = None, **hub_options: Any) -> Path:
    """Return the folder of the corpus `name`: one of CORPORA, or else a data set (`hub_corpus`, with its options).

    Keys and values are drawn by `recall_corpus`, with options of its own.

    Raises:
        SpikegptError: nothing has this name; or as `named_corpus` and `hub_corpus`.
    """
    if name in CORPORA:
        return named_corpus(name, out, cache_dir)
    if os.path.isfile(name):
        # what is no text cannot be trained on either
        plain_start(Path(name))
        raise SpikegptError(
            f"{name} is a file: train on it as it is, --data {name}, or write its tokens, "
            "--tokenizer FILE --binidx PREFIX"
        )
    if "://" in name:
        raise SpikegptError(f"{name} is an address; give OWNER/NAME of a Hugging Face data set, or fetch the file")
    if "/" not in name and not os.path.isdir(name):
        raise SpikegptError(
            f"unknown corpus {name!r}; known: {', '.join(CORPORA)}; or OWNER/NAME of a Hugging Face data set"
        )
    return hub_corpus(name, out, cache_dir, **hub_options)


def listing() -> str:
    """Return the named corpora as text, one per line."""
    width = max(map(len, CORPORA))
    lines = [
        f"{name:<{width}}  {corpus.size / 1e6:>5.1f} MB to fetch  {corpus.about}" for name, corpus in CORPORA.items()
    ]
    drawn = "keys with values, then the same keys again: what only memory predicts; drawn by --seed"
    return "\n".join([*lines, f"{RECALL:<{width}}  {RECALL_BYTES / 1e6:>5.1f} MB drawn     {drawn}"])


def named_corpus(
    name: str, out: Path | None = None, cache_dir: Path | None = None, warn: Warn = warn_on_stderr
) -> Path:
    """Return the folder with the corpus `name` of CORPORA; fetched unless it is there, whole.

    Args:
        out: the folder; default a place in `cache_dir`, which is ~/.cache/spikegpt unless given and keeps the download.

    Raises:
        SpikegptError: it cannot be fetched, or the folder cannot be written or holds something else.
    """
    corpus, cache_dir = CORPORA[name], cache_folder(cache_dir)
    folder = out or cache_dir / "corpora" / name
    request = {"corpus": name, "sha256": corpus.sha256}
    if _is_there(folder, request):
        return folder
    archive = _fetch_any(corpus, cache_dir / "downloads" / corpus.file, warn)
    with _writing(folder, request):
        if len(corpus.members) == len(SPLITS):
            for split, member in zip(SPLITS, corpus.members, strict=True):
                _write(folder / f"{split}.txt", _unzipped(archive, member))
        else:
            source = _unzipped(archive, *corpus.members) if corpus.members else Text.of_file(archive).blocks()
            # exactly by bytes: the figures of others are of these splits
            _write_split(folder, source, between_characters=False)
    return folder


def recall_corpus(
    out: Path | None = None,
    cache_dir: Path | None = None,
    *,
    pairs: int = 16,
    letters: int = 2,
    seed: int = 0,
    size: int | None = None,
) -> Path:
    """Return a folder with lines of keys and values (`recall.recall_text`), `size` bytes or RECALL_BYTES in all.

    Raises:
        SpikegptError: a number is out of its range, or the folder cannot be written or holds something else.
    """
    size = RECALL_BYTES if size is None else size
    request = {"corpus": RECALL, "pairs": pairs, "letters": letters, "seed": seed, "size": size}
    if size < LEAST_RECALL_BYTES:
        raise SpikegptError(f"recall needs at least {LEAST_RECALL_BYTES:,} bytes, got {size}")
    try:
        make_episode(pairs, 0, letters, np.random.default_rng(seed))
    except ValueError as error:
        raise SpikegptError(f"recall cannot be drawn by seed {seed}: {error}") from None
    folder = out or cache_folder(cache_dir) / "corpora" / f"{RECALL}-{pairs}-{letters}-{seed}-{size}"
    if not _is_there(folder, request):
        with _writing(folder, request):
            _write_split(folder, recall_text(pairs, letters, seed, size), between_characters=True)
    return folder


def _fetch_any(corpus: NamedCorpus, path: Path, warn: Warn) -> Path:
    for url in corpus.urls[:-1]:
        try:
            return fetch(url, path, sha256=corpus.sha256, size=corpus.size, warn=warn)
        except SpikegptError as error:
            warn(f"{error}; trying the next address")
    return fetch(corpus.urls[-1], path, sha256=corpus.sha256, size=corpus.size, warn=warn)


def _unzipped(archive: Path, member: str) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as files, files.open(member) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def hub_corpus(
    name: str,
    out: Path | None = None,
    cache_dir: Path | None = None,
    *,
    column: str = "text",
    config: str | None = None,
    split: str | None = None,
    separator: str = "\n",
    limit_bytes: int | None = None,
    warn: Warn = warn_on_stderr,
) -> Path:
    """Return a folder with the texts of a Hugging Face data set; read row by row unless it is there, whole.

    A data set with train, validation and test is used as it is split; of others `split` is cut into 90 / 5 / 5 percent.
    `warn` is told which other splits it has.

    Args:
        name: OWNER/NAME on the hub, or a folder in the layout that `datasets` reads.
        split: read this one only; default all three if there are, else "train".
        separator: stands between the texts.
        limit_bytes: end each split with the text that reaches so many bytes.

    Raises:
        SpikegptError: the data set cannot be read, has no such column or split, or the folder cannot be written.
    """
    if limit_bytes is not None and limit_bytes < 1:
        raise SpikegptError(f"limit_bytes must be at least 1, got {limit_bytes}")
    here = {"files": _digest_of(Path(name))} if os.path.isdir(name) else {}
    request = {
        "data set": name,
        "config": config,
        "split": split,
        "column": column,
        "separator": separator,
        "limit_bytes": limit_bytes,
        **here,
    }
    slug = re.sub(
        r"[^\w.-]+",
        "_",
        "-".join(
            str(value) for value in (name, config, split, column, limit_bytes, *here.values()) if value is not None
        ),
    )
    folder = out or cache_folder(cache_dir) / "corpora" / slug.strip("_")
    if _is_there(folder, request):
        return folder
    names = split_names(name, config)
    if split is not None and split not in names:
        raise SpikegptError(f"{name} has no split {split!r}, only {', '.join(names)}; choose one with --split")
    own = own_splits(names) if split is None else {}
    if not own and split is None and "train" not in names:
        raise SpikegptError(f"{name} has no split 'train', only {', '.join(names)}; choose one with --split")

    check_files(name, config, own.get("train") or split or "train", warn)
    read = set(own.values()) or {split or "train"}
    others = [other for other in names if split is None and other not in read]
    if others:
        warn(f"{name}: left out {', '.join(others)}, read {', '.join(sorted(read))}; choose another with --split")

    def rows(of: str) -> Iterator[bytes]:
        return _limited(texts(name, config, of, column), separator.encode(), limit_bytes, f"reading {name}, {of}")

    with _writing(folder, request):
        for ours, theirs in own.items():
            _write(folder / f"{ours}.txt", rows(theirs))
        if not own:
            _write_split(folder, rows(split or "train"), between_characters=True)
    return folder


def _digest_of(folder: Path) -> str:
    """A digest of all files in a folder, which may change, and of whose name there may be another elsewhere."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            digest.update(f"{path.relative_to(folder)} {sha256_of(path)}\n".encode())
        except OSError as error:
            raise SpikegptError(f"cannot read {path}: {error.strerror}; give a folder of files that can be") from None
    return digest.hexdigest()[:12]


def _limited(texts: Iterable[bytes], separator: bytes, limit: int | None, title: str) -> Iterator[bytes]:
    size = 0
    with Progress(title, limit) as progress:
        for text in texts:
            block = separator + text if size else text
            yield block
            size += len(block)
            progress.advance(len(block))
            if limit is not None and size >= limit:
                return


# --- the folder ----------------------------------------------------------------------------------------------------


def _is_there(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds just what is asked for.

    Raises:
        SpikegptError: it holds something else, which must not be overwritten.
    """
    try:
        notes = parse_json((folder / NOTES).read_text(encoding="utf-8"))
        found, splits = notes["request"], notes["splits"]
    # a file of that name may be of others
    except (OSError, ValueError, KeyError, TypeError):
        if folder.is_dir() and any(folder.iterdir()):
            raise SpikegptError(f"{folder} holds other files; choose another --out, or empty it") from None
        return False
    # no sizes: the writing was broken off
    if not splits:
        return False
    if found != request:
        raise SpikegptError(f"{folder} holds another corpus, of {found}; choose another --out, or remove it")
    return all(
        path.is_file() and path.stat().st_size == splits[split]["bytes"] and sha256_of(path) == splits[split]["sha256"]
        for split, path in _paths(folder).items()
    )


def _paths(folder: Path) -> dict[str, Path]:
    return {split: folder / f"{split}.txt" for split in SPLITS}


@contextmanager
def _writing(folder: Path, request: dict[str, Any]) -> Iterator[None]:
    """Within this block the three files of `folder` are written; then their sizes, which say that they are whole."""

    def note(splits: dict[str, Any]) -> None:
        write_atomically(folder / NOTES, json.dumps({"request": request, "splits": splits}, indent=1))

    try:
        folder.mkdir(parents=True, exist_ok=True)
        note({})
        yield
        train, valid, test = (Text.of_file(_paths(folder)[split]) for split in SPLITS)
        corpus = Corpus(name=str(folder), train=train, valid=valid, test=test)
        note(
            {
                split: {"bytes": len(corpus.split(split)), "sha256": sha256_of(path)}
                for split, path in _paths(folder).items()
            }
        )
    except OSError as error:
        raise SpikegptError(
            f"cannot write {folder}: {error.strerror or error}; free space or choose another --out"
        ) from error


def _write(path: Path, blocks: Iterable[bytes]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(blocks)


def _write_split(folder: Path, blocks: Iterable[bytes], between_characters: bool) -> None:
    """Write the text as its first 90, next 5 and last 5 percent."""
    paths = _paths(folder)
    with atomic_path(paths["train"]) as temporary:
        with temporary.open("wb") as file:
            file.writelines(blocks)
        text = Text.of_file(temporary)
        valid, test = (len(text) * percent // 100 for percent in (90, 95))
        if between_characters:
            valid, test = text.next_character(valid), text.next_character(test)
        _write(paths["valid"], text.cut(valid, test).blocks())
        _write(paths["test"], text.cut(test, len(text)).blocks())
        # what stays is the train split: no second copy of a large text
        os.truncate(temporary, valid)
