"""How figures look and how they are saved: one style, one palette, the parts that several figures share.

No pyplot and no state outlives a call. What is drawn stands in `figures.py` and `firing_figures.py`.
"""

import functools
import io
import itertools
import re
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from .formats import short_si, shorten
from .measurement import Measurement, NeuronPlace

INK, MUTED, GRID, BAND = "#1b1f24", "#5c6570", "#dfe3e8", "#f3f5f7"
# Source: Okabe and Ito, colours that stay apart for colour-blind readers; grey is what has no spikes
DENSE, SPIKE, PALE = "#4d5561", "#0072b2", "#b9c1ca"
SPIKING_COLOURS = (SPIKE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.monospace": ["DejaVu Sans Mono"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
}
WIDTH = 4.8
"""inches; at 9 points this is read on a phone without zooming"""
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "size": 8.5, "annotation_clip": False}
"""a label beside the end of a curve"""


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Run `draw` under STYLE, which is gone afterwards; a glyph that the font lacks becomes a box without a warning."""

    @functools.wraps(draw)
    def under_style(*args, **kwargs):
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            return draw(*args, **kwargs)

    return under_style


class Picture(Figure):
    """A figure that notebooks show: one made without pyplot is text to them."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


@styled
def to_svg(figure: Figure) -> str:
    """Return the figure as SVG text: the same figure gives the same text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "neuromorphic"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def inline_svg(figure: Figure, name: str) -> str:
    """Return the figure as SVG to stand inside HTML, described by its title; `name` keeps its ids its own."""
    svg = ET.fromstring(to_svg(figure))
    svg.attrib = {
        "role": "img",
        "aria-label": " ".join(figure.get_suptitle().split()),
        "viewBox": svg.attrib["viewBox"],
    }
    for parent in list(svg.iter()):
        for child in [child for child in parent if child.tag.endswith(("metadata", "style"))]:
            parent.remove(child)
    for element in svg.iter():
        # in HTML these need no namespace
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _inline_value(key, value, name) for key, value in element.attrib.items()
        }
        element.tail = None
        if element.tag != "text":
            element.text = None
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', ET.tostring(svg, encoding="unicode")))
    for element in svg.iter():
        if element.get("id") not in referred:
            element.attrib.pop("id", None)
    return ET.tostring(svg, encoding="unicode")


def _inline_value(key: str, value: str, name: str) -> str:
    """Return an attribute's value with ids made unique, two decimals, and the fonts of the page."""
    if key == "id":
        return f"{name}-{value}"
    if key == "d":
        rounded = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
        return " ".join(rounded.split())
    value = re.sub(r"font-family: [^;]*Mono[^;]*", "font-family: ui-monospace, Menlo, Consolas, monospace", value)
    value = re.sub(r"font-family: '[^;]*(; )?", "", value)
    return f"#{name}-{value[1:]}" if key.endswith("href") else value.replace("url(#", f"url(#{name}-")


@styled
def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG of 200 dots per inch."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=200, metadata={"Software": None})
    return data.getvalue()


def colours(measurements: Sequence[Measurement]) -> list[str]:
    """Return one colour per model: grey for the first without spikes, the palette in order for all others."""
    taken: list[str] = []
    for measurement in measurements:
        wanted = SPIKING_COLOURS if measurement.firing_rate is not None else (DENSE, *SPIKING_COLOURS)
        taken.append(next((colour for colour in wanted if colour not in taken), DENSE))
    return taken


def group_colours(places: Iterable[NeuronPlace]) -> dict[str, str]:
    """Return one colour per group of layers: groups of the blocks first, so that figures without the others agree."""
    groups = dict.fromkeys(place.group for place in sorted(places, key=lambda place: place.block is None))
    return dict(zip(groups, itertools.cycle(SPIKING_COLOURS), strict=False))


def group_legend(figure: Figure, shades: Mapping[str, str]) -> None:
    """Say below `figure` which colour is which group; one group alone needs no legend."""
    keys = [Line2D([], [], color=colour, linewidth=2.6, label=shorten(group, 28)) for group, colour in shades.items()]
    if len(keys) > 1:
        figure.legend(handles=keys, loc="outside lower left", ncols=4, handlelength=1.2, columnspacing=1.2)


def canvas(title: str, height: float, *, width: float = WIDTH, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a white figure under a wrapped title, and its panels from top to bottom."""
    lines = textwrap.wrap(title, int(11 * width))
    figure = Picture(figsize=(width, height + 0.18 * len(lines)), layout="constrained", facecolor="white")
    figure.suptitle("\n".join(lines), x=0.012, ha="left", size=10, weight="bold")
    return figure, list(figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0])


@styled
def statement(text: str) -> Figure:
    """Return a figure that only says why there is nothing to draw."""
    figure = Picture(figsize=(WIDTH, 0.6), facecolor="white")
    figure.suptitle("\n".join(textwrap.wrap(text, 60)), x=0.012, y=0.5, ha="left", va="center", size=9, color=MUTED)
    return figure


def ticks_of(unit: str = "", scale: float = 1.0) -> FuncFormatter:
    """Return a tick formatter that writes e.g. 10 µJ."""
    return FuncFormatter(lambda value, _: short_si(value * scale, unit))


def log_scale(axes: Axes, which: str, unit: str = "", scale: float = 1.0) -> None:
    """Make one axis of `axes` logarithmic, labelled at its decades only."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(ticks_of(unit, scale))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def bare(axes: Axes, *sides: str) -> None:
    """Take away spines and tick marks; all of them unless sides are named."""
    for side in sides or ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y" if sides == ("left",) else "x" if sides == ("bottom",) else "both", length=0)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Return positions at least `gap` apart, in the same order, moved as little as that allows (least squares)."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    # with the gaps taken out, what is too close is out of order: neighbours are pooled until the groups rise
    groups: list[list[float]] = []
    for place, index in enumerate(order):
        groups.append([positions[index] - place * gap])
        while len(groups) > 1 and sum(groups[-2]) / len(groups[-2]) > sum(groups[-1]) / len(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [sum(group) / len(group) for group in groups for _ in group]
    return [moved[place] + place * gap for place in (order.index(index) for index in range(len(positions)))]
