"""Documents in the rows of JSONL, CSV and TSV files, and files of any kind as one text."""

import csv
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..common.errors import SpikegptError
from ..common.files import atomic_path, sha256_of
from ..common.json_text import parse_json
from .reading import PACKED_SUFFIXES, check_is_file, checked, plain_start, text_blocks, text_lines
from .text import Text

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".ldjson", ".jsonlines")
ROW_SUFFIXES = (*JSONL_SUFFIXES, ".csv", ".tsv")
_LONGEST_CELL = 2**31 - 1


def suffix_of(path: Path) -> str:
    """Return what kind of text a file's name tells: its suffix in small letters, without one that says it is packed."""
    name = Path(path.name.lower())
    return (name.with_suffix("") if name.suffix in PACKED_SUFFIXES else name).suffix


def has_rows(path: Path) -> bool:
    """Return whether a file is JSONL, CSV or TSV by its name.

    Raises:
        SpikegptError: it is JSON, which may be rows, or one value, or meant as it stands.
    """
    if suffix_of(path) == ".json":
        raise SpikegptError(
            f"{path} is JSON: name it .jsonl if it holds an object per line, .txt to take the JSON itself as text"
        )
    return suffix_of(path) in ROW_SUFFIXES


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (FILE, line N; column -> value) of each row of a JSONL, CSV or TSV file. Empty lines are skipped.

    The first line of a table names its columns; a cell of a CSV file may be quoted, one of a TSV file is what it is.

    Raises:
        SpikegptError: the file cannot be read, a line is not a JSON object, two columns have one name, or a row is
            longer or shorter than the first; file and line are named.
    """
    if suffix_of(path) in JSONL_SUFFIXES:
        yield from ((place, _object(line, place)) for place, line in text_lines(path) if line.strip())
        return
    columns: list[str] | None = None
    first: list[str] = []
    for place, cells in _csv_cells(path) if suffix_of(path) == ".csv" else _tsv_cells(path):
        if columns is None:
            columns, first = _columns(cells, path), cells
        elif cells == first and len(cells) > 1:
            raise SpikegptError(f"{place}: the names of the columns again, as in joined files; remove the line")
        elif len(cells) == len(columns):
            yield place, dict(zip(columns, cells, strict=True))
        else:
            raise SpikegptError(
                f"{place}: {len(cells)} cell(s), but the first line names {len(columns)} column(s), "
                f"{', '.join(columns)}; mend or remove the line"
            )


def _columns(cells: list[str], path: Path) -> list[str]:
    """The names in the first line of a table; several may be empty, as spreadsheets leave them."""
    columns = [cell.strip() for cell in cells]
    if twice := next((name for name, count in Counter(columns).items() if name and count > 1), None):
        raise SpikegptError(f"{path} has two columns of the name {twice!r}; rename or remove one")
    if len(columns) == 1 and re.search("[,;|\t]", columns[0]):
        raise SpikegptError(
            f"{path} begins with one column, {columns[0]!r}; cells of a .csv file are separated by commas, of a .tsv "
            "file by tabs: write or name it so"
        )
    return columns


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        values = parse_json(line)
    except ValueError as error:
        is_one_piece = line.lstrip().startswith("[") or line.strip() == "{"
        advice = "write one object per line, as jq -c does" if is_one_piece else "mend or remove the line"
        raise SpikegptError(f"{place}, is not JSON: {error}; {advice}") from None
    if not isinstance(values, dict):
        raise SpikegptError(
            f"{place}, is not an object but a {type(values).__name__}; every line must be an object with a text"
        )
    return values


def _tsv_cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    # not the module csv: in these files quotation marks mean themselves
    return ((place, line.split("\t")) for place, line in text_lines(path) if line.strip(" "))


def _csv_cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    # the module has one limit for all its readers, which is shorter than some texts
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((line + "\n" for _, line in text_lines(path)), strict=True)
    while True:
        place = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            is_line_end = "new-line" in str(error)
            fault, mend = ("a CR in it", "line ends") if is_line_end else (str(error), "quotation marks")
            raise SpikegptError(f"{place}: not a row of a CSV file: {fault}; mend the {mend}") from None
        if cells is None:
            return
        if cells:
            yield place, cells


def documents(path: Path, column: str) -> Iterator[bytes]:
    """Yield the text of each row of a JSONL, CSV or TSV file, as UTF-8.

    Raises:
        SpikegptError: as `rows`; or a row has no such text, or they are full of control characters.
    """
    return checked(_documents(path, column), path)


def _documents(path: Path, column: str) -> Iterator[bytes]:
    for place, values in rows(path):
        if column not in values:
            raise SpikegptError(
                f"{place}, has no {column!r}, only {', '.join(values) or 'nothing'}; "
                "name the one that holds the text: --text-column of train, --column of data (others take 'text')"
            )
        text = values[column]
        if not isinstance(text, str):
            raise SpikegptError(
                f"{place}, has {'null' if text is None else f'a {type(text).__name__}'} as {column!r}, not text; "
                "mend the line or name another --text-column"
            )
        yield encoded(text, place, repr(column))


def encoded(text: str, place: str, what: str) -> bytes:
    """Return a text as UTF-8; SpikegptError if it holds half a surrogate pair, which JSON may spell."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise SpikegptError(f"{place}, has half a character in {what}: {error}; mend or remove the line") from None


def document_blocks(path: Path, column: str) -> Iterator[Iterable[bytes]]:
    """Yield the documents of a file, each in blocks: those of its rows, or the whole text of a file without rows."""
    if has_rows(path):
        yield from ([document] for document in documents(path, column))
    else:
        yield text_blocks(path)


def text_of(path: Path, column: str, folder: Path) -> Text:
    """Return the text of a file: as it lies there, or laid down in `folder` once it is unpacked, decoded and joined.

    Args:
        column: of a file with rows, whose documents are joined by newlines.

    Raises:
        SpikegptError: it cannot be read, is no text, has no such column, or `folder` cannot be written.
    """
    start = None if has_rows(path) else plain_start(path)
    return Text.of_file(path, start) if start is not None else Text.of_file(_laid_down(path, column, folder), name=path)


def _laid_down(path: Path, column: str, folder: Path) -> Path:
    """A file in `folder` with the text of `path`, written once per content and column; its name ends with its digest,
    so that a damaged one is found."""
    check_is_file(path)
    try:
        key = hashlib.sha256(f"{sha256_of(path)} {column}".encode()).hexdigest()[:12]
    except OSError as error:
        raise SpikegptError(f"cannot read {path}: {error.strerror}; give a text file") from None
    stem = f"{path.stem[:40]}-{key}"
    try:
        for found in folder.glob(f"{glob.escape(stem)}-*.txt"):
            if sha256_of(found)[:12] == found.stem[-12:]:
                return found
        folder.mkdir(parents=True, exist_ok=True)
        written, separator = hashlib.sha256(), b""
        with atomic_path(folder / f"{stem}.txt") as temporary, temporary.open("wb") as file:
            for blocks in document_blocks(path, column):
                for block in (separator, *blocks):
                    file.write(block)
                    written.update(block)
                separator = b"\n"
        return (folder / f"{stem}.txt").replace(folder / f"{stem}-{written.hexdigest()[:12]}.txt")
    except OSError as error:
        raise SpikegptError(
            f"cannot write into {folder}: {error.strerror}; free space or choose another --cache"
        ) from None
