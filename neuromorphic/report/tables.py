"""The rows that the terminal and the HTML report share: lists of cells, a title first, one column per model."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..count.text import csv_table, harmless, latex_table
from .context import ContextPoint
from .derived import (
    PREFILL,
    STATE_BITS,
    Estimate,
    built_work,
    dense_work,
    estimates,
    firing_layers,
    idealised_work,
    state_bytes,
    tokens_per_byte,
)
from .formats import joule, joule_range, percent, shorten, si
from .measurement import QUANTISED, Measurement

# what a terminal shows: the field's convention, arithmetic with memory, and a neuromorphic instruction set
TERMINAL_PROFILES = ("convention-4.6-0.9", "horowitz45-fp32", "seneca22")
# and where a quantised network stands beside them: products of small integers
INTEGER_PROFILE = "horowitz45-int8"

CONTEXT_HEADER = ["", "keeps", "context", "bits per byte", "bytes per text", "operations per token"]


def context_rows(points: Sequence[ContextPoint]) -> list[list[str]]:
    """Return what memory costs and buys, a row per model, policy and length, the longest context first."""
    ordered = sorted(points, key=lambda point: -point.context)
    return [
        [
            point.model,
            point.policy,
            f"{point.context:,}",
            "not predicted" if point.bits_per_byte is None else f"{point.bits_per_byte:.4f}",
            si(point.bytes_per_text, "B"),
            si(point.operations_per_token),
        ]
        for point in ordered
    ]


def comparison_rows(measurements: Sequence[Measurement], profiles: Sequence[str] | None = None) -> list[list[str]]:
    """Return the side-by-side table, without its header; `profiles` picks price tables, all of them by default."""
    energies: dict[str, Callable[[Measurement], str]] = {
        f"  {shorten(name, 28)}": partial(_energy_of, name) for name in _profiles(measurements, profiles)
    }
    rows: dict[str, Callable[[Measurement], str]] = {
        "block": block_cell,
        "parameters": lambda m: f"{m.parameters:,}",
        "bits per byte": lambda m: f"{m.bits_per_byte:.4f}",
        "firing rate": lambda m: percent(m.firing_rate),
        "matrix products, per token": lambda m: "",
        "  idealised ACs (hypothetical)": idealised_cell,
        "  as built: MACs": lambda m: si(built_work(m).macs),
        "  as built: ACs": lambda m: si(built_work(m).acs),
        "  dense: MACs": lambda m: si(dense_work(m).macs),
        "  as built, per byte of text": lambda m: si((built_work(m).macs + built_work(m).acs) * tokens_per_byte(m)),
        "elementwise, per token": lambda m: si(built_work(m).elementwise),
        "estimated energy, per token": lambda m: "",
        **energies,
        "state carried per text": lambda m: si(state_bytes(m), "B"),
        "tokens/s reading, this host": lambda m: speed_cell(m, PREFILL),
        "tokens/s one by one, this host": lambda m: speed_cell(m, "decode"),
    }
    if any(measurement.notes for measurement in measurements):
        # how far each was trained, for instance: what is unequal is not compared unseen
        rows = {"block": rows.pop("block"), "notes": lambda m: "; ".join(m.notes), **rows}
    return [[title, *map(show, measurements)] for title, show in rows.items()]


def idealised_cell(measurement: Measurement) -> str:
    work = idealised_work(measurement)
    return "–" if work is None else si(work.acs)


def _energy_of(profile: str, measurement: Measurement) -> str:
    estimate = estimates(measurement).get(profile)
    if estimate is not None and estimate.says_little:
        return f"not priced: {si(estimate.unpriced_ops)} of {si(estimate.ops)}"
    return energy_cell(estimate)


def _profiles(measurements: Sequence[Measurement], wanted: Sequence[str] | None) -> list[str]:
    found = list(dict.fromkeys(name for measurement in measurements for name in measurement.energy.get(PREFILL, {})))
    chosen = [name for name in found if wanted is None or name in wanted]
    return chosen or found[:3]


def energy_cell(estimate: Estimate | None) -> str:
    """Return "central [low–high]", with a > where terms have no price."""
    if estimate is None:
        return "no price"
    mark = "" if estimate.is_complete else "> "
    if estimate.low_pj == estimate.high_pj:
        return f"{mark}{joule(estimate.central_pj)}"
    return f"{mark}{joule(estimate.central_pj)} [{joule_range(estimate.low_pj, estimate.high_pj)}]"


def block_cell(measurement: Measurement) -> str:
    return measurement.wording.block or measurement.block


def speed_cell(measurement: Measurement, phase: str) -> str:
    return si(measurement.tokens_per_s[phase]) if phase in measurement.tokens_per_s else "–"


def comparison_table(measurements: Sequence[Measurement]) -> str:
    """Return the side-by-side table for a terminal of 120 columns: three models to a row, more of them below."""
    profiles = _terminal_profiles(measurements)
    blocks = [_text_table(measurements[first : first + 3], profiles) for first in range(0, len(measurements), 3)]
    notes = [
        "energies are estimates from price tables; > means that some terms have no price there, "
        "not priced: most operations",
        f"state at {STATE_BITS} bits",
        *sending_notes(measurements, profiles),
    ]
    return "\n\n".join(blocks) + "\n" + "\n".join(notes)


def comparison_csv(measurements: Sequence[Measurement], profiles: Sequence[str] | None = None) -> str:
    """Return the rows of the side-by-side table for a spreadsheet, a column for each model, all price tables."""
    columns = ["quantity", *(harmless(measurement.name) for measurement in measurements)]
    return csv_table(columns, [dict(zip(columns, row, strict=True)) for row in comparison_rows(measurements, profiles)])


def comparison_latex(measurements: Sequence[Measurement], profiles: Sequence[str] | None = None) -> str:
    """Return the same as a tabular of LaTeX."""
    header = ["", *(measurement.name for measurement in measurements)]
    return latex_table([header, *comparison_rows(measurements, profiles)])


def sending_notes(measurements: Sequence[Measurement], profiles: Sequence[str] | None = None) -> list[str]:
    """Return a line for each way in which price tables send the integer spikes of these models; none without such."""
    tables: dict[str, dict[str, None]] = {}
    for measurement in measurements:
        for energy in measurement.energy.get(PREFILL, {}).values():
            said = energy.get("assumptions", {}).get("integer spikes")
            if said and energy["profile"] in _profiles(measurements, profiles):
                tables.setdefault(said, {})[energy["profile"]] = None
    return [f"integer spikes in {', '.join(names)}: {said}" for said, names in tables.items()]


def _terminal_profiles(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    has_quantised = any(measurement.block == QUANTISED for measurement in measurements)
    return (*TERMINAL_PROFILES, INTEGER_PROFILE) if has_quantised else TERMINAL_PROFILES


def _text_table(measurements: Sequence[Measurement], profiles: Sequence[str]) -> str:
    cells = [
        ["", *(shorten(measurement.name, 28) for measurement in measurements)],
        *comparison_rows(measurements, profiles),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


LAYER_HEADER = (
    "module",
    "idealised ACs",
    "MACs as built",
    "ACs as built",
    "dense MACs",
    "nonzero inputs",
    "reads",
    "spike-driven",
)


def layer_rows(measurement: Measurement) -> list[list[str]]:
    """Return one row per module that multiplies matrices; operations per token."""
    return [
        [
            layer.module,
            "–" if layer.idealised_acs is None else si(layer.idealised_acs),
            si(layer.built_macs),
            si(layer.built_acs),
            si(layer.dense_ops),
            percent(layer.density),
            {"real": "numbers", "integer": "integer spikes", "ternary": "signed spikes", "binary": "spikes"}.get(
                layer.alphabet, "nothing"
            ),
            "yes" if layer.is_spike_driven else "no",
        ]
        for layer in measurement.layers
    ]


FIRING_HEADER = ("layer", "firing rate", "neurons", "dead", "saturated", "mean interval", "synchrony")


def firing_rows(measurement: Measurement) -> list[list[str]]:
    """Return one row per layer of neurons; intervals in tokens, synchrony the mean correlation of a sample of pairs."""
    layers = (measurement.firing or {}).get("layers", {})
    rows = []
    for layer in firing_layers(measurement):
        values = layers[layer.layer]
        interval, synchrony = values["mean_interval"], values["synchrony"]["mean"]
        rows.append(
            [
                layer.layer,
                percent(layer.firing_rate),
                f"{layer.neurons:,}",
                str(layer.dead),
                str(layer.saturated),
                "–" if interval is None else f"{interval:.2f}",
                "–" if synchrony is None else f"{synchrony:.3f}",
            ]
        )
    return rows


def term_rows(measurements: Sequence[Measurement], phase: str, profile: str) -> list[list[str]]:
    """Return one row per term that some model has: a column per model, and the note.

    The sum is first, the memory level last.
    """
    energies = [
        measurement.energy.get(phase, {}).get(profile, {"terms": (), "tokens": 0, "memory_level": None})
        for measurement in measurements
    ]
    found = [{term["name"]: term for term in energy["terms"]} for energy in energies]
    notes = {name: _note_of(term) for terms in reversed(found) for name, term in terms.items()}
    names = dict.fromkeys(name for terms in found for name in terms)
    cells = {
        name: [_term_cell(terms.get(name), energy["tokens"]) for terms, energy in zip(found, energies, strict=True)]
        for name in names
    }
    levels = [
        f"{energy['memory_level']}, {si(energy['footprint_bytes'], 'B')}" if energy["memory_level"] else "–"
        for energy in energies
    ]
    return [
        [
            "sum of what has a price",
            *(energy_cell(estimates(measurement, phase).get(profile)) for measurement in measurements),
            "",
        ],
        *([name, *row, notes[name]] for name, row in cells.items()),
        ["memory", *levels, "the smallest level that holds weights, state and activations"],
    ]


def _note_of(term: dict[str, Any]) -> str:
    return "; ".join(filter(None, (term["note"], f"from {term['source']}" if term.get("source") else "")))


def _term_cell(term: dict[str, Any] | None, tokens: int) -> str:
    if term is None:
        return "–"
    if not term["priced"]:
        return f"no price [{si(term['count'] / tokens)} per token]"
    ends = Estimate(profile="", unpriced=(), **{f"{end}_pj": term[f"{end}_pj"] for end in ("low", "central", "high")})
    return energy_cell(ends)


def unpriced_terms(measurements: Sequence[Measurement], profile: str) -> list[str]:
    """Return the terms that some model has and this table has no price for."""
    energies = [
        phase[profile] for measurement in measurements for phase in measurement.energy.values() if profile in phase
    ]
    return list(dict.fromkeys(name for energy in energies for name in energy["unpriced"]))
