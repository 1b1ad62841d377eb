"""Labelled texts: the paper's four tasks from the Hugging Face hub, or TSV, CSV and JSONL files, checked by line."""

import math
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..common.errors import SpikegptError, Warn, warn_on_stderr
from .documents import JSONL_SUFFIXES, encoded, has_rows, rows, suffix_of

HELD_OUT = 0.1


class Example(NamedTuple):
    text: str
    label: int


class _Found(NamedTuple):
    """An example as it was read: where, its text, its label as it stands there, and whether that is a cell of a table.

    Cells are always text, so that the 1 of one may be the number of a JSONL file.
    """

    place: str
    text: object
    label: object
    is_cell: bool = False


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples in three parts, and the names of their classes, by label."""

    name: str
    classes: tuple[str, ...]
    train: list[Example]
    valid: list[Example]
    test: list[Example]

    def majority(self) -> float:
        """Return the share of test examples with train's most frequent label: what knowing nothing gives."""
        most = Counter(example.label for example in self.train).most_common(1)[0][0]
        return sum(example.label == most for example in self.test) / len(self.test)


@dataclass(frozen=True)
class HubTask:
    """Where a task of the paper lies, and the paper's accuracy in percent.

    Accuracies: SpikeGPT (TMLR 2024), NLU table, as quoted by re-implementations; those of 216M from one of them only.
    """

    data_set: str
    text_column: str
    test_split: str
    published_46m: float
    published_216m: float


# the labels of sst2's test split are secret: as usual its validation split is the test,
# and validation is held out of train
TASKS = {
    "sst2": HubTask("stanfordnlp/sst2", "sentence", "validation", 80.39, 88.76),
    "sst5": HubTask("SetFit/sst5", "text", "test", 37.69, 51.27),
    "mr": HubTask("cornell-movie-review-data/rotten_tomatoes", "text", "test", 69.23, 85.63),
    "subj": HubTask("SetFit/subj", "text", "test", 88.45, 95.30),
}


def load_hub_task(name: str) -> Task:
    """Return a task of the paper, from the hub; the same 10 % of train are always held out for validation.

    Raises:
        SpikegptError: the task is unknown, or the hub cannot be reached.
    """
    from . import hub_rows

    if name not in TASKS:
        raise SpikegptError(
            f"unknown task {name!r}; known: {', '.join(TASKS)}; or give files: --train FILE --test FILE"
        )
    task = TASKS[name]

    def read(split: str) -> list[_Found]:
        found = hub_rows.rows(task.data_set, None, split)
        return [
            _Found(f"{task.data_set} {split}, row {n}", row.get(task.text_column), row.get("label"))
            for n, row in enumerate(found, 1)
        ]

    return make_task(name, read("train"), None, read(task.test_split))


def load_file_task(
    train: Path,
    valid: Path | None,
    test: Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    warn: Warn = warn_on_stderr,
) -> Task:
    """Return the task in TSV or CSV (first line: column names) or JSONL files.

    Without `valid`, 10 % of train are held out.

    Raises:
        SpikegptError: a file cannot be read, a column is missing, a line is broken, a text or a label is empty, a label
            is not one of train's, or written in two ways (1 and 1.0, 1 and "1", 1 and true), or train has one class
            only.
    """

    if text_column == label_column:
        raise SpikegptError(f"text and label are both to be column {text_column!r}; name another --label-column")

    def read(path: Path) -> list[_Found]:
        return list(_read_file(Path(path), text_column, label_column))

    return make_task(Path(train).stem, read(train), None if valid is None else read(valid), read(test), warn)


def make_task(
    name: str,
    train: list[_Found],
    valid: list[_Found] | None,
    test: list[_Found],
    warn: Warn = warn_on_stderr,
) -> Task:
    """Return the task of what was read, labels numbered in sorted order; `load_file_task` says what is refused."""
    parts = (train, valid or [], test)
    for is_cell in (True, False):
        _check_spelling(found for part in parts for found in part if found.is_cell == is_cell)
    labels = {_label(found) for found in train}
    # numbers in their order, not 10 before 2
    classes = tuple(
        sorted(labels, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else 0, label))
    )
    if len(classes) < 2:
        raise SpikegptError(
            f"{name}: train has {len(train)} examples of {len(classes)} class(es) ({', '.join(classes)}); "
            "at least two are needed"
        )
    _warn_of_likeness(name, classes, warn)
    number = {label: index for index, label in enumerate(classes)}

    def examples(parts: Iterable[_Found]) -> list[Example]:
        checked = []
        for found in parts:
            place, text, label = found.place, found.text, _label(found)
            if not isinstance(text, str) or not text.strip():
                raise SpikegptError(f"{place}: the text is {text!r}; every example needs one")
            encoded(text, place, "the text")
            if label not in number:
                raise SpikegptError(f"{place}: label {label!r} is not among those of train: {', '.join(classes)}")
            checked.append(Example(text, number[label]))
        return checked

    fitted, held = (examples(train), examples(valid)) if valid is not None else _hold_out(examples(train))
    if not held or not test:
        raise SpikegptError(
            f"{name}: {len(held)} examples for validation and {len(test)} for test; each needs at least one"
        )
    tested = examples(test)
    known = {example.text for example in fitted + held}
    if seen := sum(example.text in known for example in tested):
        warn(f"{name}: {seen} of {len(tested)} texts to be tested on are among those of train and valid as well")
    return Task(name=name, classes=classes, train=fitted, valid=held, test=tested)


def _label(found: _Found) -> str:
    """The label as a word, without white space around it."""
    label = found.label
    is_number = isinstance(label, int) or (isinstance(label, float) and math.isfinite(label))
    word = str(label).strip() if is_number or isinstance(label, str) else ""
    if not word:
        raise SpikegptError(f"{found.place}: the label is {label!r}; every example needs a word or a number")
    encoded(word, found.place, "the label")
    return word


def _check_spelling(examples: Iterable[_Found]) -> None:
    """Refuse a number or truth value that is written in two ways: nobody can tell whether they are one class."""
    spelled: dict[float, tuple[str, str]] = {}
    for found in examples:
        word = _label(found)
        value = {"true": 1.0, "false": 0.0}.get(word.lower())
        with suppress(ValueError):
            value = float(word)
        if value is None or not math.isfinite(value):
            continue
        written = repr(found.label.strip() if isinstance(found.label, str) else found.label)
        first, place = spelled.setdefault(value, (written, found.place))
        if written != first:
            raise SpikegptError(f"{found.place}: the label is {written}, and {first} in {place}; write both in one way")


def _warn_of_likeness(name: str, classes: tuple[str, ...], warn: Warn) -> None:
    """Say which classes differ in nothing that a reader would see, or in large and small letters alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in classes:
        alike[unicodedata.normalize("NFKC", label).casefold()].append(label)
    for labels in alike.values():
        if len(labels) > 1:
            warn(f"{name}: {', '.join(map(repr, labels))} are {len(labels)} classes; if they mean one, write one")


def _hold_out(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """(rest, a tenth of each class), drawn the same way always."""
    by_label: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        by_label[example.label].append(example)
    rest, held = [], []
    for label in sorted(by_label):
        members = by_label[label]
        random.Random(label).shuffle(members)
        count = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        held += members[:count]
        rest += members[count:]
    return rest, held


def _read_file(path: Path, text_column: str, label_column: str) -> Iterator[_Found]:
    if not has_rows(path):
        raise SpikegptError(f"{path}: give a .tsv or .csv file, whose first line names the columns, or a .jsonl file")
    for place, row in rows(path):
        for column in (text_column, label_column):
            if column in row and row[column] is None:
                raise SpikegptError(f"{place}: {column!r} is null; every example needs a text and a label")
            if column not in row:
                raise SpikegptError(
                    f"{place}: no column {column!r}; there are {', '.join(row)}; "
                    "name it with --text-column or --label-column"
                )
        yield _Found(place, row[text_column], row[label_column], suffix_of(path) not in JSONL_SUFFIXES)
