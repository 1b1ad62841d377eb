"""Tables of numbers as text."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines: names to the left in the first column, numbers to the right in all others."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        for name, *cells in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)
