"""Tables of numbers as text: for a terminal, a spreadsheet, a paper."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def printable(text: str) -> str:
    """Return `text` with a box for each character that cannot be shown: control characters, and the like."""
    return "".join(character if character.isprintable() else "□" for character in text)


def numbered(number: int, thing: str) -> str:
    """Return e.g. "1 call" or "2,000 calls"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines: names to the left in the first column, numbers to the right in all others."""
    rows = [[printable(cell) for cell in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        for name, *cells in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def latex_table(rows: Sequence[Sequence[str]]) -> str:
    """Return the same as a tabular of LaTeX, with the rules of its package booktabs; a row without text is a rule."""
    header, *body = ([_latex(printable(cell)) for cell in cells] for cells in rows)
    lines = [rf"{' & '.join(cells)} \\" if any(cells) else r"\midrule" for cells in body]
    above = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", rf"{' & '.join(header)} \\", r"\midrule"]
    return "\n".join([*above, *lines, r"\bottomrule", r"\end{tabular}"])


def csv_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a header and a line for each row, as spreadsheets read them: no cell is a formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in map(row.get, columns)])
    return text.getvalue()


def harmless(cell: str) -> str:
    """Return a text as a spreadsheet shows it: without control characters, and as no formula."""
    cell = printable(cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def _latex(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in cell)
