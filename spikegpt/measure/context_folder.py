"""What `context` writes: context.json and context.csv for programs, context.tex and two figures for people."""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuromorphic.count.text import csv_table, latex_table
from neuromorphic.report.canvas import to_png
from neuromorphic.report.context import ContextPoint
from neuromorphic.report.context_figures import bits_against_bytes, operations_against_context, recall_against_bytes
from neuromorphic.report.folder import check_place

from ..checkpoint.run import results_folder
from ..common.errors import SpikegptError
from ..common.files import write_atomically
from ..common.json_text import parse_json
from .context import cells

JSON_NAME, CSV_NAME, LATEX_NAME = "context.json", "context.csv", "context.tex"
FIGURES = {
    "bits_against_bytes.png": bits_against_bytes,
    "recall_against_bytes.png": recall_against_bytes,
    "operations_against_context.png": operations_against_context,
}
COLUMNS = (
    *("model", "mixer", "spiking", "policy", "budget", "context", "recalled", "bits", "bytes_per_text"),
    *("operations_per_token", "tokens_per_s", "predicted_tokens", "texts"),
)


def context_folder(run: Path, is_recall: bool = False) -> Path:
    """Return where the points of a run or of one of its checkpoints are kept: see `results_folder`."""
    return results_folder(run) / ("recall" if is_recall else "context")


def check_context_folder(folder: Path) -> None:
    """Raise an error if `folder` is a file, holds what would not be replaced by ours, or cannot be made.

    Worth asking before a long measurement.
    """
    ours = {JSON_NAME, CSV_NAME, LATEX_NAME, *FIGURES}
    if folder.exists() and not folder.is_dir():
        raise SpikegptError(f"{folder} is a file; give another --out")
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.is_dir() else []
    if strangers:
        raise SpikegptError(f"{folder} holds {strangers[0]}, which is none of what context writes; give another --out")
    check_place(folder, "the points")


def write_context(folder: Path, points: Sequence[ContextPoint], made: Mapping[str, str]) -> None:
    """Write the points and their figures into `folder`, replacing those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {**made, "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    rows = [point.to_dict() for point in points]
    write_atomically(folder / JSON_NAME, json.dumps({"made": made, "points": rows}, indent=1))
    parts = list(dict.fromkeys(part for point in points for part in point.bytes_by_part))
    flat = [
        {
            **{name: row[name] for name in COLUMNS},
            **{f"{part}_bytes": row["bytes_by_part"].get(part, 0) for part in parts},
        }
        for row in rows
    ]
    write_atomically(folder / CSV_NAME, csv_table([*COLUMNS, *(f"{part}_bytes" for part in parts)], flat))
    write_atomically(folder / LATEX_NAME, latex_table(cells(points)) + "\n")
    unused = "bits_against_bytes.png" if points[0].recalled is not None else "recall_against_bytes.png"
    for name, draw in FIGURES.items():
        if name != unused:
            write_atomically(folder / name, to_png(draw(points)))
    (folder / unused).unlink(missing_ok=True)


def read_context(folder: Path) -> list[ContextPoint]:
    """Return the points that `write_context` wrote into `folder`; none if there is no such folder.

    Raises:
        SpikegptError: the file is not as it was written.
    """
    path, names = folder / JSON_NAME, [field.name for field in dataclasses.fields(ContextPoint)]
    try:
        rows = parse_json(path.read_text(encoding="utf-8"))["points"]
        points = [ContextPoint(**{name: row[name] for name in names}) for row in rows]
        return [dataclasses.replace(point, notes=tuple(point.notes)) for point in points]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpikegptError(
            f"cannot read the points in {path}: {type(error).__name__}: {error}; measure them anew with spikegpt "
            "context, or move the file away"
        ) from error
