"""The figures of work, energy, quality and memory: each function takes measurements and returns a matplotlib Figure.

Titles say what is seen and are computed; names are drawn as they are. The look stands in `canvas.py`, what shows spikes
in `firing_figures.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .canvas import (
    BESIDE,
    DENSE,
    INK,
    MUTED,
    PALE,
    SPIKE,
    bare,
    canvas,
    colours,
    log_scale,
    spread,
    statement,
    styled,
    ticks_of,
)
from .derived import (
    PREFILL,
    STATE_BITS,
    Estimate,
    Work,
    built_work,
    cache_bytes_per_token,
    effective_ops,
    estimates,
    idealised_work,
    spiking,
    state_bytes,
    twin_of,
    work_by_kind,
)
from .formats import joule, percent, shorten, si, times
from .measurement import Measurement


@styled
def operations(measurements: Sequence[Measurement]) -> Figure:
    """Return the operations per token, dense, as built and idealised: MACs, ACs and elementwise operations apart."""
    views = [(model.name, work_by_kind(model)) for model in measurements]
    n_bars = sum(len(works) for _, works in views)
    figure, [axes] = canvas(_operations_title(measurements), 0.95 + 0.24 * n_bars + 0.36 * len(views))
    longest = max((sum(work) for _, works in views for work in works.values()), default=0.0) or 1.0
    position, ticks = 0.0, {}
    for name, works in views:
        axes.text(0, position, shorten(name, 44), weight="bold", va="center")
        for kind, work in works.items():
            position += 0.9
            ticks[position] = kind
            _bar(axes, position, work, longest, is_hypothetical=kind == "idealised")
        position += 1.4
    axes.set(xlim=(0, longest), ylim=(position - 0.7, -0.6), xlabel="operations per token")
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_major_formatter(ticks_of())
    bare(axes, "left")
    keys = [
        Patch(color=colour, label=label) for label, colour in (("MAC", DENSE), ("AC", SPIKE), ("elementwise", PALE))
    ]
    if "idealised" in ticks.values():
        keys.append(Patch(facecolor="white", edgecolor=MUTED, hatch="////", label="hypothetical"))
    figure.legend(handles=keys, loc="outside lower left", ncols=4, handlelength=1.2, columnspacing=1.2)
    return figure


def _bar(axes: Axes, position: float, work: Work, longest: float, is_hypothetical: bool) -> None:
    """Draw one stacked bar, each part with its number where there is room for it."""
    left = 0.0
    parts = [(amount, colour) for amount, colour in zip(work, (DENSE, SPIKE, PALE), strict=True) if amount]
    for amount, colour in parts:
        fill: dict[str, Any]
        fill = {"facecolor": "white", "edgecolor": colour, "hatch": "////"} if is_hypothetical else {"color": colour}
        axes.barh(position, amount, left=left, height=0.72, linewidth=0.8, **fill)
        if amount > 0.14 * longest:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0} if is_hypothetical else None
            ink = INK if is_hypothetical or colour == PALE else "white"
            axes.text(left + 0.012 * longest, position, si(amount), va="center", size=8, color=ink, bbox=box)
        left += amount


def _operations_title(measurements: Sequence[Measurement]) -> str:
    shares = {model.name: _accumulated(model) for model in spiking(measurements)}
    if not shares:
        return "Operations per token: every product is a multiply-accumulate"
    if len(shares) > 2:
        return (
            f"{percent(min(shares.values()))} to {percent(max(shares.values()))} "
            "of the spiking models' products are accumulations"
        )
    reads = {name: f"{percent(share)} of the products are accumulations" for name, share in shares.items() if share}
    return "; ".join(f"{shorten(name, 28)}: {reads.get(name, 'no matrix product reads a spike')}" for name in shares)


def _accumulated(model: Measurement) -> float:
    """Return the share of the products performed that are accumulations."""
    work = built_work(model)
    return work.acs / (work.macs + work.acs) if work.macs + work.acs else 0.0


@styled
def energy(measurements: Sequence[Measurement], phase: str = PREFILL) -> Figure:
    """Return the estimated energy of one token by price table, with its interval; open where terms have no price.

    An estimate that says little (`Estimate.says_little`) is no point: it would stand among the cheapest.
    """
    by_model = [estimates(model, phase) for model in measurements]
    profiles = list(
        dict.fromkeys(name for found in by_model for name, estimate in found.items() if _is_drawn(estimate))
    )
    if not profiles:
        return statement(f"No price table has a price for what these models do ({phase}).")
    rows = len(profiles) * (len(measurements) + 1)
    figure, [axes] = canvas(_energy_title(by_model, phase), 1.0 + 0.19 * rows)
    position, shades = 0.0, colours(measurements)
    for profile in profiles:
        axes.text(
            0.0,
            position,
            shorten(profile, 44),
            transform=axes.get_yaxis_transform(),
            va="center",
            weight="bold",
            size=8.5,
        )
        for found, colour in zip(by_model, shades, strict=True):
            position += 0.8
            _interval(axes, position, found.get(profile), colour)
        position += 1.2
    log_scale(axes, "x", "J", 1e-12)
    low, high = axes.dataLim.intervalx
    # room on the right for the numbers
    axes.set(
        xlim=(low / 2, high * (high / low) ** 0.35 * 3),
        ylim=(position - 0.6, -0.7),
        yticks=[],
        xlabel=f"estimated energy per token, {phase}",
    )
    axes.grid(axis="x")
    bare(axes, "left")
    keys = [
        Line2D([], [], marker="o", color=colour, label=shorten(model.name, 28))
        for model, colour in zip(measurements, shades, strict=True)
    ]
    keys.append(Line2D([], [], marker="o", color=MUTED, markerfacecolor="white", label="> only a part has a price"))
    figure.legend(handles=keys, loc="outside lower left", ncols=2, handlelength=1.4, columnspacing=1.2)
    return figure


def _is_drawn(estimate: Estimate) -> bool:
    return estimate.central_pj > 0 and not estimate.says_little


def _interval(axes: Axes, position: float, estimate: Estimate | None, colour: str) -> None:
    if estimate is None or not _is_drawn(estimate):
        says = "no price"
        if estimate is not None and estimate.says_little:
            says = f"not priced: {si(estimate.unpriced_ops)} of {si(estimate.ops)} operations"
        axes.text(0.02, position, says, transform=axes.get_yaxis_transform(), va="center", size=8, color=colour)
        return
    # an interval from 0 has no beginning on a logarithmic axis
    low_pj = estimate.low_pj or estimate.central_pj
    axes.plot([low_pj, estimate.high_pj], [position] * 2, color=colour, linewidth=1.6, solid_capstyle="round")
    axes.plot(
        estimate.central_pj,
        position,
        "o",
        color=colour,
        markerfacecolor=colour if estimate.is_complete else "white",
        markersize=5.5,
    )
    says = f"{'' if estimate.is_complete else '> '}{joule(estimate.central_pj)}"
    axes.annotate(
        says, (estimate.high_pj, position), (6, 0), textcoords="offset points", va="center", size=8, color=colour
    )


def _energy_title(by_model: list[dict[str, Estimate]], phase: str) -> str:
    priced = [estimate.central_pj for found in by_model for estimate in found.values() if _is_drawn(estimate)]
    if len(priced) < 2:
        return f"Estimated energy of one token ({phase})"
    return (
        f"Estimates of one token ({phase}) run from {joule(min(priced))} to {joule(max(priced))}, "
        "by model and price table"
    )


@styled
def quality_against_operations(measurements: Sequence[Measurement]) -> Figure:
    """Return bits per byte against the operations that matrix products perform, idealised figures as open circles."""
    shown = [
        (model, colour)
        for model, colour in zip(measurements, colours(measurements), strict=True)
        if math.isfinite(model.bits_per_byte)
    ]
    if not shown:
        return statement("No model here has finite bits per byte.")
    models = [model for model, _ in shown]
    figure, [axes] = canvas(_quality_title(models), 2.6)
    farthest = max(effective_ops(model) for model in models) or 1.0
    bits = [model.bits_per_byte for model in models]
    margin = 0.35 * (max(bits) - min(bits)) or 0.1
    axes.set(xlim=(0, 1.08 * farthest), ylim=(min(bits) - margin, max(bits) + margin))
    heights = spread(bits, 0.1 * (max(bits) - min(bits) + 2 * margin))
    for (model, colour), height in zip(shown, heights, strict=True):
        _quality_point(axes, model, colour, height, farthest)
    axes.set(xlabel="effective operations per token (MACs + ACs)", ylabel="bits per byte")
    axes.xaxis.set_major_formatter(ticks_of())
    axes.grid()
    return figure


def _quality_point(axes: Axes, model: Measurement, colour: str, height: float, farthest: float) -> None:
    """Draw a model where it stands, and where the published arithmetic would have it."""
    performed, idealised = effective_ops(model), idealised_work(model)
    if idealised is not None:
        hypothetical = idealised.macs + idealised.acs
        axes.plot([hypothetical, performed], [model.bits_per_byte] * 2, ":", color=colour, linewidth=1)
        axes.plot(hypothetical, model.bits_per_byte, "o", color=colour, markerfacecolor="white", markersize=5.5)
    axes.plot(performed, model.bits_per_byte, "o", color=colour, markersize=7)
    is_right = performed > 0.5 * farthest
    place: dict[str, Any] = {
        "xytext": (-9 if is_right else 9, 3),
        "textcoords": "offset points",
        "ha": "right" if is_right else "left",
        "va": "bottom",
        "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    }
    axes.annotate(f"{shorten(model.name, 28)}  {model.bits_per_byte:.3f}", (performed, height), color=colour, **place)


def _quality_title(measurements: Sequence[Measurement]) -> str:
    models = spiking(measurements)
    twin = twin_of(models[0], measurements) if len(models) == 1 else None
    if twin is None or not effective_ops(twin):
        return "Quality against operations: lower and further left is better" + (
            "; open circles are hypothetical" if models else ""
        )
    bits, ratio = models[0].bits_per_byte - twin.bits_per_byte, effective_ops(models[0]) / effective_ops(twin)
    place = f"{bits:+.3f} bits per byte at {times(ratio)} the operations of its dense twin"
    return f"{shorten(models[0].name, 28)}: {place}; the open circle is hypothetical"


@styled
def state_memory(measurements: Sequence[Measurement]) -> Figure:
    """Return the memory carried for one text against its length, and that of a Transformer's key-value cache."""
    figure, [axes] = canvas(_state_title(measurements), 2.6)
    lengths = np.array([1, 65_536])
    shown = [
        (model, colour)
        for model, colour in zip(measurements, colours(measurements), strict=True)
        if model.state_elements
    ]
    for elements in dict.fromkeys(
        model.key_value_elements_per_token for model in measurements if model.key_value_elements_per_token
    ):
        axes.plot(lengths, lengths * elements * STATE_BITS / 8, "--", color=INK, linewidth=1.2)
        axes.annotate(
            "key-value cache", (lengths[1], lengths[1] * elements * STATE_BITS / 8), (5, 0), **BESIDE, color=INK
        )
    log_scale(axes, "x")
    log_scale(axes, "y", "B")
    low, high = np.log10(axes.get_ylim())
    heights = 10 ** np.array(spread([math.log10(state_bytes(model)) for model, _ in shown], 0.09 * (high - low)))
    for (model, colour), height in zip(shown, heights, strict=True):
        full = model.state_tokens or 1
        grown = [state_bytes(model) / full, *[state_bytes(model)] * 2]
        axes.plot([1, full, lengths[1]], grown, color=colour, linewidth=1.6)
        axes.annotate(
            f"{shorten(model.name, 16)} {si(state_bytes(model), 'B')}",
            (lengths[1], height),
            (5, 0),
            **BESIDE,
            color=colour,
        )
    axes.set(xlim=(1, lengths[1]), xlabel="context length in tokens", ylabel=f"bytes per text, {STATE_BITS} bit")
    axes.grid()
    return figure


def _state_title(measurements: Sequence[Measurement]) -> str:
    for model in spiking(measurements) or measurements:
        if model.state_tokens is not None:
            continue
        cache = cache_bytes_per_token(model)
        if cache and model.state_elements:
            passed = math.floor(state_bytes(model) / cache) + 1
            carried = si(state_bytes(model), "B")
            return (
                f"{shorten(model.name, 28)} carries {carried} at any length; "
                f"a Transformer's cache is larger from token {passed:,} on"
            )
    return "Memory carried for one text"
