"""The figures of a text's memory: what it buys against the bytes carried, and operations by how much was read."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .canvas import DENSE, SPIKING_COLOURS, canvas, log_scale, statement, styled
from .context import CONSTANT, ContextPoint
from .formats import shorten, si


class Group(NamedTuple):
    """What is drawn alike: (model, kind of policy), its points, and how."""

    key: tuple[str, str]
    points: list[ContextPoint]
    colour: str
    marker: str


@styled
def bits_against_bytes(points: Sequence[ContextPoint]) -> Figure:
    """Return bits per byte against the bytes that a text carries, at the longest context that was predicted.

    A curve joins what one kind of policy reaches with one model; a constant state is a point.
    """
    found = [(point, point.bits_per_byte) for point in points if point.bits_per_byte is not None]
    if not found:
        return statement("No window is within the text, so nothing was predicted.")
    longest = max(point.context for point, _ in found)
    title = f"What memory buys: bits per byte behind {longest // 2:,} to {longest:,} tokens"
    return _against_bytes(found, title, "bits per byte")


@styled
def recall_against_bytes(points: Sequence[ContextPoint]) -> Figure:
    """Return the share of values that were recalled against the bytes that a text carries, at the longest context."""
    found = [(point, point.recalled) for point in points if point.recalled is not None]
    if not found:
        return statement("Nothing was asked for.")
    longest = max(point.context for point, _ in found)
    title = f"What memory buys: values recalled that were told up to {longest:,} tokens before"
    return _against_bytes(found, title, "share of values recalled")


def _against_bytes(found: Sequence[tuple[ContextPoint, float]], title: str, label: str) -> Figure:
    """`found` are points and what they reach; shown are those of the longest context."""
    longest = max(point.context for point, _ in found)
    height = {id(point): value for point, value in found if point.context == longest}
    shown = [point for point, _ in found if point.context == longest]
    groups = _grouped(shown)
    figure, [axes] = canvas(title, _height(groups))
    keys = []
    for (model, kind), group, colour, marker in groups:
        group = sorted(group, key=lambda point: point.bytes_per_text)
        x, y = [point.bytes_per_text for point in group], [height[id(point)] for point in group]
        axes.plot(x, y, marker=marker, color=colour, markersize=7 if kind == CONSTANT else 4.5, linewidth=1.4)
        keys.append(Line2D([], [], marker=marker, color=colour, label=shorten(f"{model}: {kind}", 28)))
    log_scale(axes, "x", "B")
    _few_ticks(axes, [point.bytes_per_text for point in shown])
    axes.set(xlabel="bytes carried per text", ylabel=label)
    axes.grid()
    figure.legend(handles=keys, loc="outside lower left", ncols=2, handlelength=1.6, columnspacing=1.4)
    return figure


@styled
def operations_against_context(points: Sequence[ContextPoint]) -> Figure:
    """Return the operations of a token against how many were read before, by model and policy."""
    groups = _grouped(points)
    figure, [axes] = canvas("Operations of one token by how many were read before", _height(groups))
    keys = []
    for (model, kind), group, colour, marker in groups:
        for policy in dict.fromkeys(point.policy for point in group):
            line = sorted((p for p in group if p.policy == policy), key=lambda point: point.context)
            axes.plot(
                [point.context for point in line],
                [point.operations_per_token for point in line],
                marker=marker,
                color=colour,
                markersize=4.5,
                linewidth=1.4,
            )
        keys.append(Line2D([], [], marker=marker, color=colour, label=shorten(f"{model}: {kind}", 28)))
    for which, values in (("x", [p.context for p in points]), ("y", [p.operations_per_token for p in points])):
        log_scale(axes, which)
        _few_ticks(axes, values, which)
    axes.set(xlabel="context in tokens", ylabel="operations of one token")
    axes.grid()
    figure.legend(handles=keys, loc="outside lower left", ncols=2, handlelength=1.6, columnspacing=1.4)
    return figure


def _grouped(points: Sequence[ContextPoint]) -> list[Group]:
    """Points by model and kind of policy, with a colour and a marker: constant states in grey, in the order given."""
    groups: dict[tuple[str, str], list[ContextPoint]] = {}
    for point in points:
        kind = "+".join(part.partition(":")[0] for part in point.policy.split("+"))
        groups.setdefault((point.model, kind), []).append(point)
    colours, markers = itertools.cycle(SPIKING_COLOURS), itertools.cycle("osDv^P<")
    constant = itertools.cycle("*Xd")
    return [
        Group(key, group, DENSE, next(constant))
        if key[1] == CONSTANT
        else Group(key, group, next(colours), next(markers))
        for key, group in groups.items()
    ]


def _height(groups: Sequence[Group]) -> float:
    """Inches of a figure with so many lines in its legend."""
    return 2.6 + 0.19 * ((len(groups) + 1) // 2)


def _few_ticks(axes: Axes, values: Sequence[float], which: str = "x") -> None:
    """Label the ends where they are within a decade, which a logarithmic axis would leave bare."""
    low, high = min(values), max(values)
    if high / low < 20:
        ticks = sorted({low, (low * high) ** 0.5, high}) if high > 1.05 * low else [low]
        (axes.set_xticks if which == "x" else axes.set_yticks)(ticks, [si(tick) for tick in ticks])
