"""Tables in files, for a spreadsheet, a paper, a program: the one way of all verbs that print a table."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import SpikegptError
from ..common.files import write_atomically
from ..common.printing import one_line
from .parsing import UsageError

SUFFIXES = (".csv", ".tex", ".json")


def check_table(path: Path) -> None:
    """Raise an error if no table can be written to `path`; worth asking before a long measurement."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out is {one_line(path)}, whose ending says no format; give one of {', '.join(SUFFIXES)}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise SpikegptError(f"cannot write the table {path}: give a file in a folder that is there and may be written")


def write_table(path: Path, cells: Sequence[Sequence[str]], results: Sequence[Mapping[str, Any]]) -> None:
    """Write a table as the ending of `path` says.

    Args:
        path: a .tex file gets `cells`; a .csv file a line for each result, values in values by names such as
            stream.bits_per_byte; a .json file the results.
        cells: the table as it is printed, its first row above all others.
    """
    from neuromorphic.count.text import csv_table, latex_table

    suffix = path.suffix.lower()
    if suffix == ".tex":
        text = latex_table(cells) + "\n"
    elif suffix == ".csv":
        lines = [dict(_flat(result)) for result in results]
        text = csv_table(list(dict.fromkeys(name for line in lines for name in line)), lines)
    else:
        text = json.dumps(results, indent=1)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise SpikegptError(f"cannot write {path}: {error.strerror}; give another --out") from None


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
