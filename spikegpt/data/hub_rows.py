"""Data sets of the Hugging Face hub, or of a folder in its layout, read row by row with the library `datasets`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..common.errors import SpikegptError
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
        SpikegptError: as `rows`; or there is no such column, or a row holds no text.
    """
    for number, row in enumerate(rows(name, config, split), 1):
        if column not in row:
            raise SpikegptError(
                f"{name} has no column {column!r}, only {', '.join(row)}; name the one that holds the text: --column"
            )
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
            f"cannot read the data set {name}: {error}; look up its splits and configurations, --split and --config"
        ) from None
