"""Data sets of the Hugging Face hub, or of a folder in its layout, read row by row with the library `datasets`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import SpikegptError, Warn
from . import splits
from .reading import checked
from .splits import SPLIT_OF_WORD, SPLITS


def split_names(name: str, config: str | None) -> list[str]:
    """Return the splits of a data set.

    Raises:
        SpikegptError: it cannot be reached, does not exist, needs a configuration, or is a program of its repository.
    """
    with _told(name):
        return _datasets().get_dataset_split_names(name, config)


def own_splits(names: list[str]) -> dict[str, str]:
    """Return {"train": ..., "valid": ..., "test": ...} if `names` has all three by any of their names, else {}."""
    found = {SPLIT_OF_WORD.get(name.lower()): name for name in names}
    return {split: found[split] for split in SPLITS} if found.keys() >= set(SPLITS) else {}


def check_files(name: str, config: str | None, split: str, warn: Warn) -> None:
    """Refuse a split whose files tell several splits by names that the library does not know, such as TRAIN and TEST.

    Raises:
        SpikegptError: as `split_names`; or the files are of several splits.
    """
    with _told(name):
        files = (_datasets().load_dataset_builder(name, config).config.data_files or {}).get(split)
    if files and splits.own_splits([Path(file) for file in files], warn):
        raise SpikegptError(
            f"{name}: the files of its split {split!r} are train, valid and test by their names; call them "
            "train, validation and test, which the library datasets knows"
        )


def rows(name: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, without holding more than a few.

    Raises:
        SpikegptError: as `split_names`; or there is no such split.
    """
    with _told(name):
        found = iter(_datasets().load_dataset(name, config, split=split, streaming=True))
    while True:
        with _told(name):
            row = next(found, None)
        if row is None:
            return
        yield row


def texts(name: str, config: str | None, split: str, column: str) -> Iterator[bytes]:
    """Yield the text of each row, as UTF-8.

    Raises:
        SpikegptError: as `rows`; or there is no such column, or a row holds no text, or they are full of control
            characters.
    """
    yield from checked(_texts(name, config, split, column), f"{name}, {split}")


def _texts(name: str, config: str | None, split: str, column: str) -> Iterator[bytes]:
    for number, row in enumerate(rows(name, config, split), 1):
        if column not in row:
            raise SpikegptError(
                f"{name} has no column {column!r}, only {', '.join(row)}; name the one that holds the text: --column"
            )
        # so pandas calls a second column of the name
        if f"{column}.1" in row:
            raise SpikegptError(f"{name} has two columns of the name {column!r}; rename or remove one")
        if not isinstance(row[column], str):
            kind = type(row[column]).__name__
            raise SpikegptError(
                f"{name}, row {number} of {split}: the column {column!r} holds a {kind}, not text; "
                "name another --column"
            )
        yield row[column].encode()


def _datasets():
    try:
        import datasets
    except ImportError:
        raise SpikegptError("data sets of Hugging Face need the library datasets: pip install 'spikegpt[hf]'") from None
    return datasets


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Within this block the errors of the library become ours."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except RuntimeError as error:
        # Dataset scripts are no longer supported
        raise SpikegptError(
            f"the data set {name} is refused, for it runs code of its repository: {error}; choose one of plain files"
        ) from None
    except (ConnectionError, HTTPError) as error:
        raise SpikegptError(
            f"cannot reach the data set {name}: {error}; is this machine online, and the name right?"
        ) from None
    except (OSError, ValueError) as error:
        raise SpikegptError(
            f"cannot read the data set {name}: {error}; mend its files, or look up its "
            "splits and configurations, --split and --config"
        ) from None
