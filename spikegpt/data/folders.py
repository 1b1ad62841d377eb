"""Which files of a folder are texts; what is left out is said."""

import os
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import chain
from pathlib import Path

from ..common.errors import SpikegptError, Warn
from ..common.files import sha256_of
from ..common.printing import command
from .documents import suffix_of
from .kinds import foreign_kind
from .reading import PACKED_SUFFIXES, SAMPLE_BYTES

TEXT_SUFFIXES = (".txt", ".md", ".text", ".jsonl", ".ndjson")
# what the library `datasets` reads and we do not
DATA_SET_SUFFIXES = (".parquet", ".arrow")
# what `spikegpt data` notes beside the texts that it writes
NOTES = "corpus.json"


def files_of(paths: list[Path], warn: Warn) -> list[Path]:
    """Return the files among `paths`, and the texts in the folders among them, at any depth, sorted by path.

    In a folder a text is what TEXT_SUFFIXES name, packed or not. `warn` is told what else there is. Links are left out:
    they may lead out of the folder, or to the same text again. So is what is hidden, as .git is. A file that is named
    twice is read once. Copies and empty files are read and said.

    Raises:
        SpikegptError: a folder holds no text, or part of it cannot be read.
    """
    found = [file for path in paths for file in (_texts_in(path, warn) if os.path.isdir(path) else [path])]
    once: dict[object, Path] = {}
    for file in found:
        once.setdefault(_identity(file), file)
    if len(once) < len(found):
        warn(f"{len(found) - len(once)} file(s) named twice are read once: what is learned must not be tested")
    _warn_of_contents(list(once.values()), warn)
    return list(once.values())


def _identity(file: Path) -> object:
    """What is equal for one file, whatever its names: links of both kinds."""
    try:
        found = os.stat(file)
        return found.st_dev, found.st_ino
    # missing, a NUL in its name: whoever reads it says so
    except (OSError, ValueError):
        return os.path.abspath(file)


def _warn_of_contents(files: list[Path], warn: Warn) -> None:
    """Say which files are empty, and which hold the same as another."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in filter(os.path.isfile, files):
        by_size[os.path.getsize(file)].append(file)
    # one alone is refused
    if (empty := by_size.pop(0, [])) and len(files) > 1:
        warn(f"{len(empty)} file(s) are empty, such as {empty[0]}")
    by_content: dict[str, list[Path]] = defaultdict(list)
    for file in chain.from_iterable(same for same in by_size.values() if len(same) > 1):
        # one that cannot be read is refused by whoever reads it
        with suppress(OSError):
            by_content[sha256_of(file)].append(file)
    for first, *copies in by_content.values():
        if copies:
            warn(
                f"{first} and {len(copies)} other(s), such as {copies[0]}, are the same: what is learned may be tested"
            )


def _texts_in(folder: Path, warn: Warn) -> list[Path]:
    found = sorted(_walk(folder))
    names, texts, left_out = set(found), [], Counter[str]()
    for path in found:
        reason = _why_not(path, names)
        if reason is None:
            texts.append(path)
        elif path != folder / NOTES:
            left_out[reason] += 1
    others = ", ".join(f"{reason} ({count})" for reason, count in left_out.most_common())
    if not texts:
        wanted = ", ".join("*" + suffix for suffix in TEXT_SUFFIXES)
        but = f", but {others}" if others else ""
        is_data_set = any(path.suffix.lower() in DATA_SET_SUFFIXES for path in found)
        if is_data_set:
            advice = f"read it by {command('data', folder)} --column NAME"
        elif found and all(map(_is_no_text, found)):
            advice = "convert them to plain text, or give another folder"
        else:
            advice = "name the files themselves"
        raise SpikegptError(f"folder {folder} holds no {wanted} file{but}; {advice}")
    if others:
        warn(f"folder {folder}: left out {others}; to read them too, name the files themselves")
    return texts


def _walk(folder: Path) -> list[Path]:
    """Everything in a folder but folders; links are not followed, nor is what is hidden looked into."""

    def refuse(error: OSError) -> None:
        raise SpikegptError(f"cannot read the folder {error.filename}: {error.strerror}; name the files themselves")

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        found += [Path(parent, name) for name in names]
        found += [path for path in (Path(parent, name) for name in folders) if path.is_symlink() or _is_hidden(path)]
        folders[:] = [name for name in folders if not _is_hidden(Path(parent, name))]
    return found


def _is_no_text(path: Path) -> bool:
    if not os.path.isfile(path):
        return True
    with path.open("rb") as file:
        return foreign_kind(file.read(SAMPLE_BYTES)) is not None


def _is_hidden(path: Path) -> bool:
    # the second is what macOS packs beside every file
    return path.name.startswith(".") or path.name == "__MACOSX"


def _why_not(path: Path, names: set[Path]) -> str | None:
    """What the file is counted as among those left out; None for a text."""
    if path.is_symlink():
        return "links"
    if _is_hidden(path):
        return "hidden"
    if not os.path.isfile(path):
        return "pipes, sockets, devices"
    if suffix_of(path) not in TEXT_SUFFIXES:
        return "*" + path.suffix if path.suffix else "names without ending"
    if path.suffix.lower() in PACKED_SUFFIXES and path.with_suffix("") in names:
        return "packed copies"
    return None
