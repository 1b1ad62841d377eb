"""One folder that says all that was measured: report.html for people, report.json and report.csv for programs, figures.

comparison.csv and comparison.tex are the side-by-side table, for a spreadsheet and a paper.

The HTML needs nothing else: no network, no scripts, figures and style inside. The folder is written under another name
and then renamed, so it is whole or not there.
"""

import datetime
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..count.text import csv_table
from . import context_figures, figures, firing_figures
from .canvas import to_png
from .derived import context_points, spiking
from .html import page
from .measurement import Claims, LayerOps, Measurement
from .tables import comparison_csv, comparison_latex, comparison_table

__all__ = ["ReportError", "check_folder", "comparison_table", "write_report"]

JSON_NAME, HTML_NAME, CSV_NAME = "report.json", "report.html", "report.csv"
TABLE_CSV, TABLE_LATEX = "comparison.csv", "comparison.tex"
FILES = (JSON_NAME, HTML_NAME, CSV_NAME, TABLE_CSV, TABLE_LATEX)


class ReportError(ValueError):
    """The report cannot be written where it was asked for; the message says why."""


def check_folder(folder: Path) -> None:
    """Raise ReportError if a report in `folder` would replace what is no report of ours, or cannot be written.

    Worth asking before a long measurement.
    """
    if (stranger := _stranger(folder)) is not None:
        raise ReportError(
            f"{folder} is no report: {stranger} is none of its files; give another folder, or move it away"
        )
    check_place(folder, "the report")


def check_place(folder: Path, what: str) -> None:
    """Raise ReportError, which says `what` is to be written, if no folder can be made there."""
    # what is there of the way to it
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ReportError(f"cannot write {what} {folder}: {parent} is no folder to write in; give another folder")


def write_report(
    folder: Path,
    measurements: Sequence[Measurement],
    *,
    title: str,
    claims: Claims | None = None,
    made: Mapping[str, str] | None = None,
) -> Path:
    """Write the report into `folder`, replacing the report that is there; return the path of its HTML.

    `made` says how it came to be, in pairs of words such as "command" and "version"; the date is added.

    Raises:
        ReportError: there is nothing to report, the folder holds something else, or it cannot be written.
    """
    if not measurements:
        raise ReportError("there is nothing to report: no measurement was given")
    check_folder(folder)
    made = {**(made or {}), "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    # "." has no name to put something beside
    target = folder.resolve()
    # beside the target, so that the renaming stays on one disk
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        (unfinished / "figures").mkdir(parents=True)
        drawn = _figures(measurements)
        for name, figure in drawn.items():
            (unfinished / "figures" / f"{name}.png").write_bytes(to_png(figure))
        (unfinished / HTML_NAME).write_text(
            page(measurements, drawn, title=title, claims=claims, made=made), encoding="utf-8", errors="replace"
        )
        (unfinished / CSV_NAME).write_text(_csv(measurements), encoding="utf-8", errors="replace", newline="")
        for name, table in ((TABLE_CSV, comparison_csv), (TABLE_LATEX, comparison_latex)):
            (unfinished / name).write_text(table(measurements), encoding="utf-8", errors="replace", newline="")
        content = {
            "title": title,
            "made": made,
            "claims": asdict(claims) if claims else None,
            "measurements": [m.to_dict() for m in measurements],
        }
        (unfinished / JSON_NAME).write_text(json.dumps(_finite(content), indent=1, allow_nan=False), encoding="utf-8")
        _replace(target, unfinished)
    except OSError as error:
        raise ReportError(f"cannot write the report {folder}: {error.strerror}; give another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder / HTML_NAME


def _stranger(folder: Path) -> Path | None:
    """Return something that a report does not have and one written here would destroy; None if there is nothing."""
    if not folder.is_dir():
        return folder if folder.exists() else None
    inside = {path for path in folder.iterdir() if path.name != "figures"} | set((folder / "figures").glob("*"))
    ours = {path for path in inside if path.name in FILES or path.match("figures/*.png")}
    if inside and folder / JSON_NAME not in ours:
        return min(inside)
    return min(inside - ours, default=None)


def _replace(folder: Path, unfinished: Path) -> None:
    """Put `unfinished` in the place of `folder`: whatever interrupts, one of the two is there and whole.

    Of several that are written at once, the last one stays.
    """
    old = unfinished.with_name(unfinished.name + ".old")
    try:
        while unfinished.exists():
            shutil.rmtree(old, ignore_errors=True)
            with suppress(FileNotFoundError):
                os.replace(folder, old)
            try:
                os.replace(unfinished, folder)
            except OSError as error:
                # another report came here in between
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        if unfinished.exists() and old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(old, ignore_errors=True)


def _finite(value: Any) -> Any:
    """Return plain values with null for what JSON cannot say: infinity and not-a-number."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(measurements: Sequence[Measurement]) -> dict[str, Figure]:
    """Name -> figure, in the order of the report; without spikes there is no raster and no rate."""
    drawn = {
        "operations": figures.operations(measurements),
        "energy": figures.energy(measurements),
        "quality_against_operations": figures.quality_against_operations(measurements),
        "state_memory": figures.state_memory(measurements),
    }
    if points := context_points(measurements):
        drawn["bits_against_bytes"] = context_figures.bits_against_bytes(points)
        drawn["operations_against_context"] = context_figures.operations_against_context(points)
    if spiking(measurements):
        drawn["firing_rates"] = firing_figures.firing_rates(measurements)
    for index, measurement in enumerate(spiking(measurements)):
        drawn["raster" if index == 0 else f"raster_{index + 1}"] = firing_figures.raster(measurement)
    return drawn


def _csv(measurements: Sequence[Measurement]) -> str:
    """One row per model and module that multiplies matrices; operations per token."""
    names = list(LayerOps.__dataclass_fields__)
    rows = [
        {"model": measurement.name, **vars(layer), "is_spike_driven": layer.is_spike_driven}
        for measurement in measurements
        for layer in measurement.layers
    ]
    return csv_table(["model", *names, "is_spike_driven"], rows)
