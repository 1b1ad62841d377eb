"""Numbers and token labels as people read them: three significant digits, SI prefixes, visible white space."""

import math
import re

from ..count.text import printable

_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "←"}


def si(value: float, unit: str = "") -> str:
    """Return e.g. "5.31 M" or, with a unit, "812 µJ"."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return f"0 {unit}".rstrip()
    # rounded first, so that 999.6 becomes 1 k and not 1000
    rounded = float(f"{value:.3g}")
    exponent = min(max(3 * math.floor(math.log10(abs(rounded)) / 3), min(_PREFIXES)), max(_PREFIXES))
    digits = f"{rounded / 10.0**exponent:#.3g}".rstrip(".") if exponent or value % 1 else f"{rounded:.0f}"
    return f"{digits} {_PREFIXES[exponent]}{unit}".rstrip()


def short_si(value: float, unit: str = "") -> str:
    """Return the same without zeros after the point, for axes: "10 µJ"."""
    return re.sub(r"(\.\d*[1-9])0+(?= |$)|\.0+(?= |$)", r"\1", si(value, unit))


def joule(energy_pj: float) -> str:
    """Return picojoules with the prefix that fits, e.g. "1.21 µJ"."""
    return si(energy_pj * 1e-12, "J")


def joule_range(low_pj: float, high_pj: float) -> str:
    """Return e.g. "17.8–23.8 µJ", or "59.6 µJ–6.97 mJ"."""
    low, high = joule(low_pj), joule(high_pj)
    shared = low.partition(" ")[2] == high.partition(" ")[2]
    return f"{low.partition(' ')[0] if shared else low}–{high}"


def percent(share: float | None) -> str:
    """Return e.g. "19.9 %"; a dash for None; "0 %" only for exactly 0."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:#.3g}".rstrip(".") + " %" if share else "0 %"


def times(ratio: float) -> str:
    """Return e.g. "32.2×"."""
    return (
        "–"
        if not math.isfinite(ratio)
        else f"{ratio:.2f}×"
        if ratio < 10
        else f"{ratio:,.1f}×"
        if ratio < 1000
        else f"{ratio:,.0f}×"
    )


def shorten(name: str, limit: int) -> str:
    """Return `name`, its middle cut out if it is longer than `limit`: the ends tell models and modules apart."""
    name = printable(name)
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return f"{name[: limit - 1 - tail]}…{name[-tail:]}"


def visible(label: str) -> str:
    """Return a token's label with its white space visible, and what cannot be drawn as a box."""
    return "".join(_VISIBLE.get(character, printable(character)) for character in label)
