"""The page of a report, as one string: every text escaped, figures inline, no script, nothing from elsewhere."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from .canvas import to_png
from .derived import built_work, dense_work, phases, spiking, twin_of
from .formats import percent, shorten, si, times
from .measurement import Claims, Measurement
from .tables import BLOCKS, FIRING_HEADER, LAYER_HEADER, TERM_HEADER, comparison_rows, firing_rows, layer_rows, term_rows

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --muted: #5c6570; --line: #dfe3e8; --band: #f3f5f7; --spike: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 62rem; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
p { max-width: 44rem; margin: .5rem 0; }
.lead { font-size: 1.05rem; }
p.small, figcaption { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
figcaption { max-width: 44rem; margin-bottom: .3rem; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
td.note { white-space: normal; min-width: 16rem; color: var(--muted); }
tbody th { font-weight: 400; }
tr.group th { font-weight: 600; border-bottom-color: var(--muted); }
th.inner { padding-left: 1rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 0 2rem; align-items: start; }
.wide img { max-width: none; }
.alarm { border-left: 4px solid #b3261e; background: #fdecea; padding: .6rem .9rem; max-width: 44rem; }
@media (max-width: 40rem) { table { font-size: .78rem; } th, td { white-space: normal; min-width: 6.5rem; } }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
@media print { body { font-size: 11px; max-width: none; padding: 0; } .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; }
  h2, h3 { break-after: avoid; } tr, figure:has(img) { break-inside: avoid; }
  .wide img { width: 100%; } td { white-space: normal; } }
"""

LABELS = {
    "operations": "Operations per token: idealised, as built and dense",
    "energy": "Estimated energy per token by price table, with intervals",
    "quality_against_operations": "Bits per byte against operations per token",
    "state_memory": "State memory against context length",
    "firing_rates": "Firing rate by layer",
}


def page(measurements: Sequence[Measurement], drawn: dict[str, Figure], *, title: str, claims: Claims | None) -> str:
    """Return the whole HTML page."""
    images = {name: _image(name, figure) for name, figure in drawn.items()}
    rasters = "".join(f'<div class="scroll wide">{image}</div>' for name, image in images.items() if name.startswith("raster"))
    sections = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="lead">{escape(sentence)}</p>' for sentence in _summary(measurements)),
        _alarm(measurements),
        "<h2>Side by side</h2>",
        _comparison(measurements),
        _claims(claims),
        "<h2>Operations</h2>",
        f'<div class="pair">{images["operations"]}{images["quality_against_operations"]}</div>',
        "".join(_layers(measurement) for measurement in measurements),
        "<h2>Energy, estimated</h2>",
        f'<div class="pair">{images["energy"]}{images["state_memory"]}</div>',
        _energy(measurements),
        _firing(measurements, images.get("firing_rates", ""), rasters),
        "<h2>What was counted, and what was not</h2>",
        *(f"<p>{escape(text)}</p>" for text in _method(measurements)),
    ]
    body = "\n".join(filter(None, sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head>
<body><main>
{body}
</main></body>
</html>
"""


def _image(name: str, figure: Figure) -> str:
    label = LABELS.get(name, "Spikes while a prompt is read, by neuron and token")
    data = base64.b64encode(to_png(figure)).decode()
    width = round(figure.get_figwidth() * 96)
    return f'<figure><img src="data:image/png;base64,{data}" width="{width}" alt="{escape(label)}"></figure>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first column names its rows; a row of empty cells is a heading, an indented name stands below it."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(_row(row, note=header[-1] == "note") for row in rows)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    # the caption stands outside of what scrolls, so that it wraps on a phone
    return f"<figure><figcaption>{escape(caption)}</figcaption>{table}</figure>"


def _row(row: Sequence[str], note: bool) -> str:
    name, *cells = row
    group = ' class="group"' if not any(cells) else ""
    inner = ' class="inner"' if name.startswith(" ") else ""
    classes = [' class="note"' if note and index == len(cells) - 1 else "" for index in range(len(cells))]
    shown = "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(classes, cells, strict=True))
    return f'<tr{group}><th scope="row"{inner}>{escape(name.strip())}</th>{shown}</tr>'


def _summary(measurements: Sequence[Measurement]) -> list[str]:
    """Plain words, computed from the counts."""
    twin = twin_of(measurements)
    sentences = []
    for model in spiking(measurements):
        readers = sum(layer.is_spike_driven for layer in model.layers)
        work = built_work(model)
        reads = f"{readers} of its {len(model.layers)} matrix products read spikes" if readers else "no matrix product reads a spike"
        sentence = f"In {model.name} {reads}: a token costs {si(work.macs)} multiply-accumulates and {si(work.acs)} accumulations"
        if twin is not None:
            ops = built_work(twin)
            sentence += f", {times((work.macs + work.acs) / (ops.macs + ops.acs))} the {si(ops.macs)} of its dense twin {twin.name}"
            sentence += f", at {model.bits_per_byte:.3f} against {twin.bits_per_byte:.3f} bits per byte"
        sentences.append(sentence + f". Its neurons fire at {percent(model.firing_rate)} of the tokens.")
    if not sentences:
        model = measurements[0]
        sentences.append(f"{model.name} has no spikes: a token costs {si(dense_work(model).macs)} multiply-accumulates, zeros included.")
    return sentences


def _alarm(measurements: Sequence[Measurement]) -> str:
    """Operators without a rule make every figure here too low."""
    found = [f"{model.name}: {item['operator']} ({item['calls']} calls)" for model in measurements for item in model.uncounted]
    listed = escape("; ".join(found))
    return f'<p class="alarm"><strong>Not counted:</strong> {listed}. All operations and energies are too low by these.</p>' if found else ""


def _comparison(measurements: Sequence[Measurement]) -> str:
    header = ["", *(shorten(measurement.name, 40) for measurement in measurements)]
    first = measurements[0]
    caption = f"{first.text}: {first.tokens:,} tokens; {first.protocol}. Energies are estimates; > means that some terms have no price."
    hosts = ", ".join(dict.fromkeys(measurement.host for measurement in measurements))
    return _table(header, comparison_rows(measurements), caption) + f'<p class="small">Tokens per second were measured on: {escape(hosts)}.</p>'


def _claims(claims: Claims | None) -> str:
    if claims is None:
        return ""
    rows = [
        ["published, one projection", times(claims.per_projection_ratio)],
        ["published, in total", times(claims.total_ratio)],
        ["the same recipe with the firing rate measured here", times(claims.idealised_ratio)],
        ["as built", times(claims.as_built_ratio)],
    ]
    caption = "Energy of the dense products divided by that of the spiking model, at the published 4.5 pJ per MAC and 0.9 pJ per AC"
    return f"<h2>The published saving</h2><p>{escape(claims.sentence)}</p>" + _table(["arithmetic", "saving"], rows, caption)


def _layers(measurement: Measurement) -> str:
    caption = "Operations per token; idealised is what the published recipe says, density and alphabet are of the tensor that was read"
    table = _table(LAYER_HEADER, layer_rows(measurement), caption)
    return f"<details><summary>{escape(measurement.name)}: {len(measurement.layers)} products, layer by layer</summary>{table}</details>"


def _energy(measurements: Sequence[Measurement]) -> str:
    parts = [_break_even(measurements)]
    for measurement in measurements:
        for phase in phases([measurement]):
            tables = "".join(f"<h3>{escape(name)}</h3>{_energy_terms(energy)}" for name, energy in measurement.energy[phase].items())
            name = f"{measurement.name}, {phase}: every term, its price table and source"
            parts.append(f"<details><summary>{escape(name)}</summary>{tables}</details>")
    return "".join(parts)


def _energy_terms(energy: dict[str, Any]) -> str:
    where = f"weights, activations and state in {energy['memory_level']}" if energy["memory_level"] else "no memory is priced"
    caption = (
        f"Estimate per token. {energy['title']}. Grade: {energy['grade']}; scope: {energy['scope'].replace('_', ' ')}; "
        f"footprint {energy['footprint_bytes']:,} bytes, {where}. Includes: {', '.join(energy['includes'])}. "
        f"Excludes: {', '.join(energy['excludes'])}. Source: {energy['citation']}"
    )
    return _table(TERM_HEADER, term_rows(energy), caption)


def _break_even(measurements: Sequence[Measurement]) -> str:
    """At which density of spikes an event-driven product costs what a dense one does, by price table."""
    first = measurements[0]
    energies = next(iter(first.energy.values()), {})
    if not energies:
        return ""
    reuses = list(next(iter(energies.values()))["break_even"])
    rows = [
        [
            name,
            "–" if energy["mac_over_ac"] is None else f"{energy['mac_over_ac']:.2f}",
            _density(energy["break_even"][reuses[0]]["without_memory"]),
            *(_density(energy["break_even"][reuse]["with_memory"]) for reuse in reuses),
        ]
        for name, energy in energies.items()
    ]
    header = ["price table", "MAC / AC", "arithmetic alone", *(f"with memory, weights used {reuse}×" for reuse in reuses)]
    return _table(header, rows, f"Density of events below which accumulating them is cheaper than dense products, at the size of {first.name}")


def _density(value: float | None) -> str:
    return "no price" if value is None else "always" if value >= 1 else percent(value)


def _firing(measurements: Sequence[Measurement], rates: str, rasters: str) -> str:
    tables = [
        f"<h3>{escape(model.name)}</h3>" + _table(FIRING_HEADER, firing_rows(model), f"{model.tokens:,} tokens; intervals in tokens")
        for model in spiking(measurements)
    ]
    return "<h2>Firing</h2>" + rates + rasters + "".join(tables) if tables else ""


def _method(measurements: Sequence[Measurement]) -> list[str]:
    blocks = "; ".join(f"{model.name}: {BLOCKS.get(model.block, model.block)}" for model in measurements)
    return [
        f"Blocks: {blocks}.",
        "Counts are exact integers, taken from the tensors that the operators consumed. A product is an accumulation (AC) only if "
        "the vector that it read held nothing but 0 and 1, or -1, 0 and 1; everything else is a multiply-accumulate (MAC). As built "
        "leaves out products with a zero on either side, which pays only on hardware that skips them; dense counts them all. What "
        "depends on parameters alone is prepared once and not counted.",
        "The idealised column is the published recipe, operations times a firing rate. It never asks what a product reads.",
        "Energies are estimates from the named price tables, not measurements. The interval runs from weights fetched once and zeros "
        "skipped to every weight fetched for every token. A term without a price is left out and said to be unpriced, so the sum is "
        "too low by it; prices of different scope are never added. Static power, host and network are in none of them.",
        "report.json beside this page holds everything, report.csv the products by layer.",
    ]
