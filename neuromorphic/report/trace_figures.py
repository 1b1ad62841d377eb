"""The figures of what goes on while a text is read: the membranes of a few neurons, and the weights that are read."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .canvas import GRID, INK, MUTED, SPIKE, WIDTH, bare, canvas, group_colours, group_legend, statement, styled
from .firing_figures import MOST_TOKENS
from .formats import percent, shorten, visible
from .measurement import Wording

MOST_NEURONS = 12


@styled
def membrane_traces(
    membranes: np.ndarray,
    spikes: np.ndarray,
    thresholds: np.ndarray,
    prompt: Sequence[str],
    *,
    name: str,
    neurons: Sequence[int],
) -> Figure:
    """Return the membranes of some `neurons` along a text, a panel for each: the potential that every token charges.

    Args:
        membranes: (T, C), before the reset; spikes: (T, C); thresholds: (C,).
        prompt: a label for each token.
        name: of the layer.
        neurons: channels, at most MOST_NEURONS are drawn.

    Raises:
        ValueError: shapes do not fit, or no neuron is named, or one that is not there.
    """
    T, C = membranes.shape
    if spikes.shape != (T, C) or thresholds.shape != (C,) or len(prompt) != T:
        raise ValueError(
            f"membranes are {(T, C)}, spikes {spikes.shape}, thresholds {thresholds.shape}, labels {len(prompt)}; "
            "want (T, C), (T, C), (C,), T"
        )
    shown = list(neurons)[:MOST_NEURONS]
    if not shown or not all(0 <= neuron < C for neuron in shown):
        raise ValueError(f"neurons are {list(neurons)}; want some of 0 to {C - 1}")
    labels = [visible(label) for label in prompt[:MOST_TOKENS]]
    rate = float((spikes[:, shown] != 0).mean())
    title = f"{shorten(name, 40)}: {len(shown)} neurons, which fire at {percent(rate)} of the tokens"
    figure, panels = canvas(title, 0.7 + 0.62 * len(shown), width=_width(labels), rows=len(shown))
    for axes, neuron in zip(panels, shown, strict=True):
        potential, fired = membranes[: len(labels), neuron], spikes[: len(labels), neuron]
        is_signed = bool((spikes[:, neuron] < 0).any())
        _membrane(axes, potential, fired, float(thresholds[neuron]), is_signed)
        axes.set_ylabel(f"{neuron}", rotation=0, ha="right", va="center")
        bare(axes, "bottom")
    _label_tokens(panels[-1], labels)
    panels[-1].set_xlabel("token; membrane before the reset, dashed: threshold, dots: spikes")
    return figure


def _membrane(axes: Axes, potential: np.ndarray, fired: np.ndarray, threshold: float, is_signed: bool) -> None:
    for level in (threshold, -threshold) if is_signed else (threshold,):
        axes.axhline(level, color=MUTED, linewidth=0.8, linestyle="--")
    axes.axhline(0, color=GRID, linewidth=0.6)
    axes.plot(potential, color=SPIKE, linewidth=1.2, drawstyle="steps-mid")
    at = np.nonzero(fired)[0]
    axes.plot(at, potential[at], "o", color="#d55e00", markersize=3.5)
    axes.yaxis.set_major_locator(MaxNLocator(2))


@styled
def weight_reads(
    reads: Mapping[str, np.ndarray],
    weights: Mapping[str, int],
    prompt: Sequence[str],
    *,
    name: str,
    wording: Wording | None = None,
) -> Figure:
    """Return the share of the weights behind neurons that each token of a text reads, stacked by group of layers.

    Args:
        reads: layer of neurons -> weights read at each token, (T,): those of the neurons that fired.
        weights: the same layers -> weights that a dense product would read at every token.
        prompt: a label for each token.
        name: of the model.

    Raises:
        ValueError: layers or lengths do not fit.
    """
    if reads.keys() != weights.keys() or any(len(found) != len(prompt) for found in reads.values()):
        raise ValueError(f"want the same layers in reads and weights, and {len(prompt)} numbers for each")
    if not reads:
        return statement(f"In {name} no matrix product reads spikes.")
    wording = wording or Wording()
    labels = [visible(label) for label in prompt[:MOST_TOKENS]]
    places = {layer: wording.place(layer) for layer in reads}
    shades, every = group_colours(places.values()), sum(weights.values())
    share = sum(int(found.sum()) for found in reads.values()) / (every * len(prompt))
    title = f"{shorten(name, 40)}: a token reads {percent(share)} of the weights behind neurons"
    figure, [axes] = canvas(title, 2.2, width=_width(labels))
    below = np.zeros(len(labels))
    for group, colour in shades.items():
        amount = sum(reads[layer][: len(labels)] for layer, place in places.items() if place.group == group) / every
        axes.bar(range(len(labels)), amount, bottom=below, width=0.8, color=colour, linewidth=0)
        below = below + amount
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axes.set(ylabel="weights read", xlabel="token; a dense product reads 100 % at each")
    axes.grid(axis="y")
    bare(axes, "left")
    _label_tokens(axes, labels)
    group_legend(figure, shades)
    return figure


def _width(labels: Sequence[str]) -> float:
    return max(WIDTH, 1.2 + (0.095 if _is_text(labels) else 0.17) * len(labels))


def _is_text(labels: Sequence[str]) -> bool:
    return all(len(label) == 1 for label in labels)


def _label_tokens(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_xlim(-0.8, len(labels) - 0.2)
    rotation = 0 if _is_text(labels) else 90
    axes.set_xticks(range(len(labels)), labels, family="monospace", color=INK, rotation=rotation)
