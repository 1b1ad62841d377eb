"""The splits that names tell: train.txt beside Valid.txt and test.txt, wiki.train.raw, train/ and test/."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import SpikegptError
from .documents import suffix_of
from .reading import PACKED_SUFFIXES

SPLITS = ("train", "valid", "test")
# "eval" is whichever of valid and test is missing beside it
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trn", "trainset"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "devel", "development", "validset", "devset"), "valid"),
    **dict.fromkeys(("test", "testing", "tst", "testset"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evalset"), "eval"),
    **dict.fromkeys(("heldout", "held-out", "held_out", "holdout", "hold-out", "hold_out"), "eval"),
}
_WORD = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(SPLIT_OF_WORD)})(?![^\W\d_])")
# where a word begins in trainData
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# numbers, those of parts too (-00001-of-00004), and what separates words
_NO_LETTERS = re.compile(r"\d+[-_.]of[-_.]\d+|[\W\d_]+")


def own_splits(files: list[Path]) -> dict[str, list[Path]]:
    """Return the files of train, valid and test, if that is how their names tell them apart; {} if they tell nothing.

    Names belong together whose letters are the same but for the word of their split: train-1.txt and test.txt,
    wiki.train.raw and wiki.valid.raw, train/a.txt and test/b.txt, but not on-training.md and test-plan.md.

    Raises:
        SpikegptError: some of the files belong to different splits, but not all do, or a split has none. Joined and
            split anew, what somebody kept for testing would be trained on.
    """
    root = os.path.commonpath([file.parent.absolute() for file in files])
    told = {file: dict(_told(file.absolute().relative_to(root))) for file in files}
    splits_of: dict[str, set[str]] = defaultdict(set)
    for places in told.values():
        for place, split in places.items():
            splits_of[place].add(split)
    found: dict[str, list[Path]] = defaultdict(list)
    for file, places in told.items():
        # the outermost name that others share but for the split
        found[next((split for place, split in places.items() if len(splits_of[place]) > 1), "")].append(file)
    if set(found) == {""}:
        return {}
    if "eval" in found and (missing := [split for split in ("valid", "test") if split not in found]):
        found[missing[0]] = found.pop("eval")
    if found.keys() == set(SPLITS):
        return {split: found[split] for split in SPLITS}
    names = [file.absolute().relative_to(root).as_posix() for file in files]
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise SpikegptError(
        f"{root} looks split but holds {listed}; keep exactly train, valid and test in it, "
        "or join the files into one to have them split anew"
    )


def _told(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (the name up to here with a star for the word of a split, that split), outermost folder first."""
    *folders, name = (_CAPITAL.sub("-", part).lower() for part in path.parts)
    if Path(name).suffix in PACKED_SUFFIXES:
        name = Path(name).stem
    suffix = suffix_of(path)
    parts = [*folders, name if suffix[1:] in SPLIT_OF_WORD else name.removesuffix(suffix)]
    for depth, part in enumerate(parts):
        for word in _WORD.finditer(part):
            around = (_NO_LETTERS.sub("", some) for some in (part[: word.start()], part[word.end() :]))
            yield "/".join([*parts[:depth], "*".join(around)]), SPLIT_OF_WORD[word.group()]
