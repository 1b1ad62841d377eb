"""Tables as text."""

from .printing import one_line


def columns(rows: list[list[str]]) -> str:
    """Return rows of cells as lines, each column as wide as its widest cell; control characters are made visible."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
