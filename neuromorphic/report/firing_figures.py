"""The figures of spikes: the raster of a prompt, and the firing rate by layer.

Colours are of the groups of layers that the caller names.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .canvas import (
    BAND,
    BESIDE,
    GRID,
    INK,
    WIDTH,
    bare,
    canvas,
    group_colours,
    group_legend,
    spread,
    statement,
    styled,
)
from .derived import LayerFiring, firing_layers
from .formats import percent, shorten, visible
from .measurement import Measurement, NeuronPlace, Raster, Wording

MOST_TOKENS = 160
"""tokens of a prompt that a raster shows"""
_UNWORDED = Wording()
LINES = ("-", ":", "--", "-.")


def raster(measurement: Measurement) -> Figure:
    """Return the spikes of a measurement's prompt, see `spike_raster`."""
    return spike_raster(measurement.rasters, measurement.name, measurement.wording)


@styled
def spike_raster(bands: Sequence[Raster], name: str, wording: Wording = _UNWORDED) -> Figure:
    """Return the spikes of a prompt: its tokens along x, one band per layer, one row per neuron.

    Args:
        bands: layers that read the same prompt.
        name: of the model.
        wording: where the layers stand, for names and colours.
    """
    if not bands:
        return statement(f"{name} has no spikes to show.")
    prompt = [visible(label) for label in bands[0].prompt[:MOST_TOKENS]]
    is_text = all(len(label) == 1 for label in prompt)
    height = 0.75 + len(bands) * min(max(0.3, 3.6 / len(bands)), 0.7)
    figure, [axes] = canvas(
        _raster_title(bands, name), height, width=max(WIDTH, 1.2 + (0.095 if is_text else 0.17) * len(prompt))
    )
    places = [wording.place(band.layer) for band in bands]
    shades = group_colours(places)
    for top, (band, place) in enumerate(zip(bands, places, strict=True)):
        axes.axhspan(top, top + 0.86, color=BAND, linewidth=0)
        axes.add_patch(_spikes(band, top, 0.86 / max(band.n_neurons, 1), len(prompt), shades[place.group]))
    for position, label in enumerate(bands[0].prompt[: len(prompt)]):
        if label.isspace():
            axes.axvline(position, color=GRID, linewidth=0.6, zorder=0.9)
    axes.set(xlim=(-0.8, len(prompt) - 0.2), ylim=(len(bands) - 0.14, -0.1), xlabel=_reading(bands[0]))
    axes.set_yticks([top + 0.43 for top in range(len(bands))], [_band_label(place) for place in places])
    axes.set_xticks(range(len(prompt)), prompt, family="monospace", color=INK, rotation=0 if is_text else 90)
    bare(axes)
    group_legend(figure, shades)
    return figure


def _spikes(band: Raster, top: float, pitch: float, n_tokens: int, colour: str) -> PathPatch:
    """Return one path for all spikes of a band: a stroke per spike, as tall as its neuron's row."""
    shown = [(token, neuron) for token, neuron in zip(band.tokens, band.neurons, strict=True) if token < n_tokens]
    corners = [(token, top + (neuron + edge) * pitch) for token, neuron in shown for edge in (0.05, 0.95)]
    outline = Outline(
        np.array(corners, dtype=float).reshape(-1, 2), [Outline.MOVETO, Outline.LINETO] * len(shown) or None
    )
    return PathPatch(outline, fill=False, edgecolor=colour, linewidth=2.6, capstyle="butt")


def _raster_title(bands: Sequence[Raster], name: str) -> str:
    cells = sum(band.n_neurons * len(band.prompt) for band in bands)
    share = sum(len(band.tokens) for band in bands) / cells if cells else 0.0
    return f"{shorten(name, 40)}: {percent(share)} of the neurons shown fire at a token"


def _reading(band: Raster) -> str:
    cut = f", the first {MOST_TOKENS} of {len(band.prompt)}" if len(band.prompt) > MOST_TOKENS else ""
    return f"prompt, one token per step{cut}; {band.n_neurons} neurons per band"


def _band_label(place: NeuronPlace) -> str:
    return shorten(place.part if place.block is None else f"{place.block} {place.part}", 18)


@styled
def firing_rates(measurements: Sequence[Measurement]) -> Figure:
    """Return the firing rate by layer: a panel per spiking model, a curve per part, a colour per group of layers."""
    shown = [model for model in measurements if firing_layers(model)]
    if not shown:
        return statement("No model here has spikes.")
    layers = [layer for model in shown for layer in firing_layers(model)]
    # every curve is named at its end
    height = max(1.7, 0.3 * max(len({layer.place[:2] for layer in firing_layers(model)}) for model in shown))
    figure, panels = canvas(_firing_title(layers), 0.5 + height * len(shown), rows=len(shown))
    highest = max(layer.firing_rate for layer in layers)
    shades = group_colours(layer.place for layer in layers)
    for axes, model in zip(panels, shown, strict=True):
        _rate_curves(axes, firing_layers(model), shades, label_gap=0.2 * (highest or 1.0) / height)
        axes.set_title(_silence(model), size=8.5)
        axes.set(ylim=(0, 1.15 * highest or 1.0), ylabel="firing rate")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y")
        bare(axes, "left")
    panels[-1].set_xlabel("block; open circles: layers with dead or saturated neurons")
    group_legend(figure, shades)
    return figure


def _rate_curves(axes: Axes, layers: list[LayerFiring], shades: Mapping[str, str], label_gap: float) -> None:
    outside = [layer for layer in layers if layer.place.block is None]
    depths = {
        layer: outside.index(layer) - len(outside) if layer.place.block is None else layer.place.block
        for layer in layers
    }
    ends = []
    for group, colour in shades.items():
        parts = dict.fromkeys(layer.place.part for layer in layers if layer.place.group == group)
        for part, line in zip(parts, itertools.cycle(LINES), strict=False):
            curve = [layer for layer in layers if layer.place[:2] == (group, part)]
            rates = [layer.firing_rate for layer in curve]
            axes.plot([depths[layer] for layer in curve], rates, line, color=colour, linewidth=1.4)
            ends.append(curve[-1])
    for layer, depth in depths.items():
        colour = shades[layer.place.group]
        fill = "white" if layer.dead or layer.saturated else colour
        axes.plot(depth, layer.firing_rate, "o", color=colour, markerfacecolor=fill, markersize=4.5)
    for end, height in zip(ends, spread([end.firing_rate for end in ends], label_gap), strict=True):
        label = shorten(end.place.part, 18)
        axes.annotate(label, (depths[end], height), (7, 0), **BESIDE, color=shades[end.place.group])
    names = {
        depth: shorten(layer.place.part, 8) if layer.place.block is None else str(depth)
        for layer, depth in depths.items()
    }
    axes.set_xticks(sorted(names), [names[depth] for depth in sorted(names)])


def _silence(model: Measurement) -> str:
    layers = firing_layers(model)
    neurons, dead, saturated = (
        sum(getattr(layer, name) for layer in layers) for name in ("neurons", "dead", "saturated")
    )
    return f"{shorten(model.name, 18)}: {dead:,} dead, {saturated:,} saturated of {neurons:,} neurons"


def _firing_title(layers: Sequence[LayerFiring]) -> str:
    lowest, highest = min(layer.firing_rate for layer in layers), max(layer.firing_rate for layer in layers)
    return f"Layers fire between {percent(lowest)} and {percent(highest)} of the time"
