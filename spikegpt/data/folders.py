"""Which files of a folder are texts; what is left out is said."""

import os
from collections import Counter
from pathlib import Path

from ..common.errors import SpikegptError, Warn
from .documents import JSONL_SUFFIXES, suffix_of
from .reading import PACKED_SUFFIXES

TEXT_SUFFIXES = (".txt", ".md", ".text", *JSONL_SUFFIXES)
# what `spikegpt data` notes beside the texts that it writes
NOTES = "corpus.json"


def files_of(paths: list[Path], warn: Warn) -> list[Path]:
    """Return the files among `paths`, and the texts in the folders among them, at any depth, sorted by path.

    In a folder a text is what TEXT_SUFFIXES name, packed or not. `warn` is told what else there is. Links are left out:
    they may lead out of the folder, or to the same text again. So is what is hidden, as .git is. A file that is named
    twice is read once.

    Raises:
        SpikegptError: a folder holds no text, or part of it cannot be read.
    """
    found = [file for path in paths for file in (_texts_in(path, warn) if os.path.isdir(path) else [path])]
    once: dict[str, Path] = {}
    for file in found:
        once.setdefault(os.path.abspath(file), file)
    if len(once) < len(found):
        warn(f"{len(found) - len(once)} file(s) named twice are read once: what is learned must not be tested")
    return list(once.values())


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
        raise SpikegptError(f"folder {folder} holds no {wanted} file{but}; name the files themselves")
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
