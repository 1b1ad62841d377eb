"""The page of a report, as one string: every text escaped, figures inline, no script, nothing from elsewhere."""

from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from ..count.text import printable
from .canvas import WIDTH, inline_svg
from .derived import built_work, context_points, dense_work, effective_ops, phases, spiking, twin_of
from .formats import percent, shorten, si, times
from .measurement import Claims, Measurement
from .tables import (
    CONTEXT_HEADER,
    FIRING_HEADER,
    LAYER_HEADER,
    block_cell,
    comparison_rows,
    context_rows,
    firing_rows,
    layer_rows,
    term_rows,
    unpriced_terms,
)

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --muted: #5c6570; --line: #dfe3e8; --alarm: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.6rem 1rem 4rem; max-width: 64rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p { max-width: 44rem; margin: .5rem 0; overflow-wrap: anywhere; }
.lead { font-size: 1.08rem; }
small, .small, figcaption { color: var(--muted); font-size: .85rem; }
figure { margin: 1.2rem 0; }
figcaption { max-width: 44rem; overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 0 2.5rem;
  align-items: start; }
.half { max-width: 30.75rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .88rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.2rem .3rem 0; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom-color: var(--muted); }
tbody th { font-weight: 400; }
td small { display: block; }
dt { font-weight: 600; }
td.note, td.words { white-space: normal; }
td.note { min-width: 16rem; color: var(--muted); }
tr.group th { font-weight: 600; padding-top: .9rem; }
th.inner { padding-left: 1rem; }
details { border-bottom: 1px solid var(--line); padding: .45rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.alarm { border-left: 4px solid var(--alarm); background: #fdecea; padding: .6rem .9rem; max-width: 44rem;
  overflow-wrap: anywhere; }
@media (max-width: 40rem) { table, small, .small, figcaption { font-size: .8rem; } th, td { padding-right: .8rem; }
  thead th, tbody th { white-space: normal; min-width: 5.5rem; } td.note { min-width: 12rem; }
  td small { font-size: .72rem; } }
@media print { html { font-size: 11px; } body { font-size: 1rem; max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; } h2, h3, summary { break-after: avoid; }
  tr, svg { break-inside: avoid; } .scroll svg { min-width: 0 !important; } }
"""

CAPTIONS = {
    "operations": "Dense performs every product, as built leaves out those with a zero. The hatched bar is "
    "hypothetical: what the published recipe "
    "would say if every product read spikes.",
    "quality_against_operations": "Filled circles are what was measured; an open circle is where the published "
    "recipe would put the same model.",
    "energy": "Estimates, not measurements: circles are central readings, "
    "lines run from the most to the least favourable one. An open circle and > say that some of the "
    "work has no price in that table, so that the truth is higher; where most operations have none, there is no point.",
    "state_memory": "What is kept between two tokens. The dashed line is the key-value cache of a Transformer of the "
    "same layers and width.",
    "bits_against_bytes": "A curve joins what one way of keeping a key-value cache reaches with one model; a model "
    "whose state does not grow is a point.",
    "operations_against_context": "Products and all elementwise work, what a cache policy does included.",
    "firing_rates": "Mean over neurons and tokens. "
    "Dead neurons never fired on this text, saturated ones fired at every token.",
}

RASTER_CAPTION = "Every stroke is a spike, every row a neuron, every column a token; ␣ is a space, ↵ a new line."


def page(
    measurements: Sequence[Measurement],
    drawn: dict[str, Figure],
    *,
    title: str,
    claims: Claims | None,
    made: Mapping[str, str],
) -> str:
    """Return the whole HTML page."""
    pictures = {name: _picture(name, figure) for name, figure in drawn.items()}
    rasters = "".join(picture for name, picture in pictures.items() if name.startswith("raster"))
    sections = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="lead">{paragraph}</p>' for paragraph in _summary(measurements)),
        _alarm(measurements),
        "<h2>Side by side</h2>",
        _comparison(measurements),
        _claims(claims),
        "<h2>Operations</h2>",
        f'<div class="pair">{pictures["operations"]}{pictures["quality_against_operations"]}</div>',
        "".join(_layers(measurement) for measurement in measurements),
        "<h2>Energy (estimated) and memory</h2>",
        f'<div class="pair">{pictures["energy"]}{pictures["state_memory"]}</div>',
        _energy(measurements),
        _context(measurements, pictures),
        _firing(measurements, pictures.get("firing_rates", ""), rasters),
        "<h2>What was counted, and what was not</h2>",
        *(f"<p>{escape(text)}</p>" for text in _method(measurements)),
        "<h2>The words</h2>",
        _glossary(),
        "<h2>How this report was made</h2>",
        _made(measurements, made),
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


WORDS = {
    "token": "one step of the model and of its neurons: a byte, a character or a piece of text",
    "bits per byte": "how badly the next byte is predicted, averaged over the text; less is better, 8 is not at all",
    "MAC": "multiply-accumulate: a product of two numbers, added up",
    "AC": "accumulate: what is left of a MAC where the input is a spike",
    "dense": "every product, as hardware that looks for no zeros performs it",
    "as built": "the products of which neither side is 0, MACs and ACs by what was really read",
    "idealised": "the published recipe: every product times a firing rate, whatever it reads",
    "unit spike": "an integer spike of n is n unit spikes, n accumulations",
    "firing rate": "share of neurons and tokens with a spike; of a model, weighted by synapses",
    "dead, saturated": "neurons that never fired on this text, and that fired at every token",
    "synchrony": "mean correlation of a sample of pairs of neurons of a layer",
    "density": "share of the elements read that are not 0",
    "state": "what is kept from token to token for one text",
    "price table": "published energies of single operations; an estimate names the one that it was made with",
    "prefill, decode": "a text read at once, and token by token",
    "twin": "the dense model of the same sizes, text, seed and steps",
}


def _glossary() -> str:
    words = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in WORDS.items())
    return f"<details><summary>{len(WORDS)} words of this page</summary><dl>{words}</dl></details>"


def _made(measurements: Sequence[Measurement], made: Mapping[str, str]) -> str:
    notes = [f"{measurement.name}: {note}" for measurement in measurements for note in measurement.notes]
    facts = [f"{word}: {value}" for word, value in made.items()]
    return "".join(f'<p class="small">{escape(printable(line))}</p>' for line in [*notes, *facts])


def _picture(name: str, figure: Figure) -> str:
    """A figure with its caption; a wide one keeps the size of its letters, and scrolls on a phone."""
    svg, caption = inline_svg(figure, name), CAPTIONS.get(name, RASTER_CAPTION)
    if figure.get_figwidth() > WIDTH:
        least = f'<svg style="min-width: {72 * figure.get_figwidth():.0f}px"'
        svg = f'<div class="scroll" tabindex="0">{svg.replace("<svg", least, 1)}</div>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first column names its rows; a row of empty cells is a heading, an indented name is below it."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(_row(row, has_note=header[-1] == "note") for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    # the caption stands outside of what scrolls, so that it wraps on a phone
    return f'<figure><figcaption>{escape(caption)}</figcaption><div class="scroll" tabindex="0">{table}</div></figure>'


def _row(row: Sequence[str], has_note: bool) -> str:
    name, *cells = row
    if not any(cells):
        return f'<tr class="group"><th scope="rowgroup" colspan="{len(row)}">{escape(name)}</th></tr>'
    inner = ' class="inner"' if name.startswith(" ") else ""
    note = f'<td class="note">{escape(cells.pop())}</td>' if has_note else ""
    shown = "".join(
        f"<td>{_cell(cell)}</td>" if any(map(str.isdigit, cell)) else f'<td class="words">{escape(cell)}</td>'
        for cell in cells
    )
    return f'<tr><th scope="row"{inner}>{escape(name.strip())}</th>{shown}{note}</tr>'


def _cell(text: str) -> str:
    """What stands in brackets goes below."""
    number, bracket, interval = escape(text).partition(" [")
    return f"{number}<small>[{interval}</small>" if bracket else number


def _summary(measurements: Sequence[Measurement]) -> list[str]:
    """Plain words, computed from the counts; a paragraph per spiking model, as HTML."""
    if not spiking(measurements):
        model = measurements[0]
        return [
            f"{_strong(model)} has no spikes: "
            f"a token costs {si(dense_work(model).macs)} multiply-accumulates, zeros included."
        ]
    return [_summary_of(model, twin_of(model, measurements)) for model in spiking(measurements)]


def _summary_of(model: Measurement, twin: Measurement | None) -> str:
    readers, work = sum(layer.is_spike_driven for layer in model.layers), built_work(model)
    reads = (
        f"{readers} of {len(model.layers)} matrix products read spikes"
        if readers
        else "no matrix product reads a spike"
    )
    costs = f"a token costs {si(work.macs)} multiply-accumulates and {si(work.acs)} accumulations"
    beside = ""
    if twin is not None and effective_ops(twin):
        ratio = times(effective_ops(model) / effective_ops(twin))
        beside = f", {ratio} the operations of its dense twin {_strong(twin)} ({si(effective_ops(twin))})"
        beside += f", at {model.bits_per_byte:.3f} against {twin.bits_per_byte:.3f} bits per byte"
    return (
        f"In {_strong(model)} {reads}: {costs}{beside}. Its neurons fire at {percent(model.firing_rate)} of the tokens."
    )


def _strong(model: Measurement) -> str:
    return f"<strong>{escape(model.name)}</strong>"


def _alarm(measurements: Sequence[Measurement]) -> str:
    """Operators without a rule make every figure here too low."""
    found = [
        f"{model.name}: {item['operator']} ({item['calls']} calls)"
        for model in measurements
        for item in model.uncounted
    ]
    listed = escape("; ".join(found))
    return (
        f'<p class="alarm"><strong>Not counted:</strong> {listed}. '
        "All operations and energies are too low by these.</p>"
        if found
        else ""
    )


def _comparison(measurements: Sequence[Measurement]) -> str:
    header = ["", *(shorten(measurement.name, 40) for measurement in measurements)]
    first = measurements[0]
    caption = (
        f"{first.text}: {first.tokens:,} tokens; {first.protocol}. Energies are estimates; "
        "> means that some terms have no price, not priced: most operations."
    )
    hosts = ", ".join(dict.fromkeys(measurement.host for measurement in measurements))
    return (
        _table(header, comparison_rows(measurements), caption)
        + f'<p class="small">Tokens per second were measured on: {escape(hosts)}.</p>'
    )


def _claims(claims: Claims | None) -> str:
    if claims is None:
        return ""
    rows = [
        ["published, one projection", times(claims.per_projection_ratio)],
        ["published, in total", times(claims.total_ratio)],
        ["the same recipe with the firing rate measured here", times(claims.idealised_ratio)],
        ["as built", times(claims.as_built_ratio)],
    ]
    caption = (
        "Energy of the dense products divided by that of the spiking model, at the published 4.5 pJ per MAC "
        "and 0.9 pJ per AC"
    )
    return f"<h2>The published saving</h2><p>{escape(claims.sentence)}</p>" + _table(
        ["arithmetic", "saving"], rows, caption
    )


def _layers(measurement: Measurement) -> str:
    caption = (
        "Operations per token; idealised is what the published recipe says, density and alphabet are of the "
        "tensor that was read"
    )
    table = _table(LAYER_HEADER, layer_rows(measurement), caption)
    return (
        f"<details><summary>{escape(measurement.name)}: "
        f"{len(measurement.layers)} products, layer by layer</summary>{table}</details>"
    )


def _energy(measurements: Sequence[Measurement]) -> str:
    profiles = dict.fromkeys(
        name for measurement in measurements for energies in measurement.energy.values() for name in energies
    )
    return _break_even(measurements) + "\n".join(_energy_terms(measurements, profile) for profile in profiles)


def _energy_terms(measurements: Sequence[Measurement], profile: str) -> str:
    """One price table: where it is from, and every term of every model, phase by phase."""
    source = next(
        energies[profile]
        for measurement in measurements
        for energies in measurement.energy.values()
        if profile in energies
    )
    missing = unpriced_terms(measurements, profile)
    summary = (
        f"{escape(profile)} "
        f"<small>{'no price for ' + escape(', '.join(missing)) if missing else 'everything has a price'}</small>"
    )
    lines = [
        f"{source['title']}. Grade: {source['grade']}. Scope: {source['scope'].replace('_', ' ')}.",
        f"Includes {', '.join(source['includes']) or 'nothing'}. Excludes "
        f"{', '.join(source['excludes']) or 'nothing'}.",
        f"Source: {source['citation']}",
        *_assumptions(measurements, profile),
    ]
    header = ["term", *(shorten(measurement.name, 28) for measurement in measurements), "note"]
    tables = [
        _table(header, term_rows(measurements, phase, profile), f"Estimate per token, {phase}")
        for phase in phases(measurements)
    ]
    text = "".join(f'<p class="small">{escape(line)}</p>' for line in lines)
    return f"<details><summary>{summary}</summary>{text}{''.join(tables)}</details>"


def _context(measurements: Sequence[Measurement], pictures: Mapping[str, str]) -> str:
    points = context_points(measurements)
    if not points:
        return ""
    drawn = "".join(pictures[name] for name in ("bits_against_bytes", "operations_against_context"))
    caption = (
        "A window of each length is read, the tokens of its second half are predicted one by one. Bytes are those that "
        "one text carries after all of it, operations those of its last token, counted"
    )
    table = _table(CONTEXT_HEADER, context_rows(points), caption)
    return (
        f'<h2>What a text\'s memory costs, and what it buys</h2><div class="pair">{drawn}</div>'
        f"<details><summary>{len(points)} points</summary>{table}</details>"
    )


def _assumptions(measurements: Sequence[Measurement], profile: str) -> list[str]:
    """What the estimates with one price table assume of each model."""
    said: dict[tuple[str, str], dict[str, None]] = {}
    for measurement in measurements:
        for energies in measurement.energy.values():
            for name, words in energies.get(profile, {}).get("assumptions", {}).items():
                said.setdefault((name, words), {})[measurement.name] = None
    return [f"Assumed of {', '.join(models)}: {name}: {words}." for (name, words), models in said.items()]


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
    header = [
        "price table",
        "MAC / AC",
        "arithmetic alone",
        *(f"with memory, weights used {reuse}×" for reuse in reuses),
    ]
    return _table(
        header,
        rows,
        f"Density of events below which accumulating them is cheaper than dense products, at the size of {first.name}",
    )


def _density(value: float | None) -> str:
    return "no price" if value is None else "always" if value >= 1 else percent(value)


def _firing(measurements: Sequence[Measurement], rates: str, rasters: str) -> str:
    tables = [
        f"<h3>{escape(model.name)}</h3>"
        + _table(FIRING_HEADER, firing_rows(model), f"{model.tokens:,} tokens; intervals in tokens")
        for model in spiking(measurements)
    ]
    return f'<h2>Firing</h2><div class="half">{rates}</div>{rasters}' + "".join(tables) if tables else ""


def _method(measurements: Sequence[Measurement]) -> list[str]:
    blocks = "; ".join(f"{model.name}: {block_cell(model)}" for model in measurements)
    return [
        f"Blocks: {blocks}.",
        "Counts are exact integers, taken from the tensors that the operators consumed. A product is an accumulation "
        "(AC) only if the vector that it read held nothing but 0 and 1, or -1, 0 and 1, or whole numbers: an integer "
        "spike of n counts as n unit spikes, n accumulations; whether it is sent so, or as one event that carries n, "
        "each price table says. Everything else is a multiply-accumulate (MAC). As built leaves out products with a "
        "zero on either side, which pays only on hardware that skips them; dense counts them all. What depends on "
        "parameters alone is not counted.",
        "The idealised column is the published recipe, operations times a firing rate. "
        "It never asks what a product reads.",
        "Energies are estimates from the named price tables, not measurements. The interval runs from weights fetched "
        "once and zeros skipped to every weight fetched for every token. A term without a price is left out and said "
        "to be unpriced, so the sum is too low by it; prices of different scope are never added. Static power, host "
        "and network are in none of them.",
        "report.json beside this page holds everything, report.csv the products by layer.",
    ]
