"""The splits that names tell: train.txt beside Valid.txt and public_test.txt, wiki.train.raw, train/ and test/."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..common.errors import SpikegptError, Warn
from .documents import suffix_of
from .reading import PACKED_SUFFIXES

SPLITS = ("train", "valid", "test")
# "eval" is whichever of valid and test is missing beside it
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "trainval"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "devel", "development", "validset", "devset"), "valid"),
    **dict.fromkeys(("test", "testing", "tst", "testset", "devtest"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evalset"), "eval"),
    **dict.fromkeys((f"{held}{between}out" for held in ("held", "hold") for between in ("", "-", "_", " ")), "eval"),
}
# newstest, publictest, and CoNLL's testa and testb as well
_WORD = re.compile(rf"(?<![^\W\d_])(?:news|public|private)?({'|'.join(SPLIT_OF_WORD)})[ab]?(?![^\W\d_])")
# where a word begins in trainData
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# numbers, those of parts too (-00001-of-00004), and what separates words
_NO_LETTERS = re.compile(r"[\W_]*\d+[-_.]of[-_.]\d+|[\W\d_]+")
# what stands beside data and tells of them
_ABOUT = {"readme", "license", "licence", "citation", "changelog", "dataset_card"}


class _Told(NamedTuple):
    """That a file's name has the word of a split.

    `place` is the path up to there with a star for that word, `bare` the same without the letters around it.
    """

    place: str
    bare: str
    split: str


def own_splits(files: list[Path], warn: Warn) -> dict[str, list[Path]]:
    """Return the files of train, valid and test, if that is how their names tell them apart; {} if they tell nothing.

    Names belong together whose letters are the same but for the word of their split: train-1.txt and test.txt,
    wiki.train.raw and wiki.valid.raw, train/a.txt and test/b.txt, but not on-training.md and test-plan.md. To a name
    that is such a word and nothing else belong all that have one: train.txt, public_test.txt and private_test.txt.

    Args:
        warn: is told of a README beside a split, which is left out, and of names that may tell splits and are joined.

    Raises:
        SpikegptError: some of the files belong to different splits, but not all do, or a split has none. Joined and
            split anew, what somebody kept for testing would be trained on.
    """
    root = os.path.commonpath([file.parent.absolute() for file in files])
    names = {file: file.absolute().relative_to(root) for file in files}
    told = {file: list(_told(name)) for file, name in names.items()}
    bare = {word.bare for words in told.values() for word in words if word.place == word.bare}
    places = {
        file: [(place, word.split) for word in words for place in _places(word, bare)] for file, words in told.items()
    }
    splits_of: dict[str, set[str]] = defaultdict(set)
    for place, split in chain.from_iterable(places.values()):
        splits_of[place].add(split)
    found: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        # the outermost name that others share but for the split
        found[next((split for place, split in places[file] if len(splits_of[place]) > 1), "")].append(file)
    if set(found) == {""}:
        _warn_of_joining(told, names, warn)
        return {}
    about = [file for file in found.get("", []) if file.name.partition(".")[0].lower() in _ABOUT]
    if about and len(about) == len(found[""]):
        warn(f"left out beside the splits of {root}: {_listed([names[file] for file in about])}")
        del found[""]
    if "eval" in found and (missing := [split for split in ("valid", "test") if split not in found]):
        found[missing[0]] = found.pop("eval")
    if found.keys() == set(SPLITS):
        return {split: found[split] for split in SPLITS}
    raise SpikegptError(
        f"{root} looks split but holds {_listed(names.values())}; keep exactly train, valid and test in it, "
        "or join the files into one to have them split anew"
    )


def _told(name: Path) -> Iterator[_Told]:
    """Yield each word of a split in a path, outermost folder first, in a name the last word first."""
    *folders, last = (_CAPITAL.sub("-", part).lower() for part in name.parts)
    if Path(last).suffix in PACKED_SUFFIXES:
        last = Path(last).stem
    suffix = suffix_of(name)
    parts = [*folders, last if _WORD.fullmatch(suffix[1:]) else last.removesuffix(suffix)]
    for depth, part in enumerate(parts):
        for word in reversed(list(_WORD.finditer(part))):
            around = (_NO_LETTERS.sub("", some) for some in (part[: word.start()], part[word.end() :]))
            place, bare = ("/".join([*parts[:depth], end]) for end in ("*".join(around), "*"))
            yield _Told(place, bare, SPLIT_OF_WORD[word[1]])


def _places(word: _Told, bare: set[str]) -> list[str]:
    """Where a word is compared: among names like its own, beside bare ones, and a bare one among those of all folders.

    `bare` are the places of all bare names.
    """
    return [word.place, *({word.bare} & bare), *(["*/*"] if word.place == word.bare else [])]


def _warn_of_joining(told: dict[Path, list[_Told]], names: dict[Path, Path], warn: Warn) -> None:
    """Say that files are joined though their names have words of several splits, or some are such a word alone."""
    words = list(chain.from_iterable(told.values()))
    has_bare = any(word.place == word.bare for word in words)
    if len(told) > 1 and (len({word.split for word in words}) > 1 or (has_bare and not all(told.values()))):
        warn(
            f"the files {_listed(names.values())} are joined and cut into splits anew; if some are for testing, "
            "call all train, valid and test, or name those alone that are for training"
        )


def _listed(names: Iterable[Path]) -> str:
    listed = [name.as_posix() for name in names]
    return ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")
