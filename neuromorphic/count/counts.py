"""The data model: exact integers that say what was computed, free of any hardware, price or number format.

Every quantity counts operations, elements or events, never bits: bits depend on the width that a deployment chooses, so
they are asked for with a width. Counts of disjoint work add up; `Counts.__add__` is that sum.
"""

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from .text import text_table

ELEMENTWISE = (
    "add",
    "mul",
    "div",
    "compare",
    "select",
    "exp",
    "log",
    "sigmoid",
    "tanh",
    "sqrt",
    "rsqrt",
    "trigonometric",
)

KINDS = ("matmul", "convolution", "embedding", "norm", "softmax", "elementwise", "neuron", "scan", "state", "move")

PHASES = ("prefill", "decode")
"""what a counter calls its calls, unless it is told another name"""

ALPHABETS = ("zero", "binary", "ternary", "integer", "real")
SPIKES = ("binary", "ternary", "integer")


class Site(NamedTuple):
    """Where work was done: the module's path, the operator, and the phase of the text."""

    module: str
    operator: str
    phase: str


@dataclass(kw_only=True)
class Counts:
    """Integer counts of one site, or of a sum of sites.

    Matrix products and convolutions:
        dense_ops: products of an input element and a weight, zeros included; padding of a convolution is no input.
        effective_macs: those with a nonzero input and a nonzero weight, where neither side is of spikes.
        effective_acs: those with a nonzero input and a nonzero weight, where one side is binary or ternary.
        weight_side_acs: the part of effective_acs owed to binary or ternary weights; its input was integer or real.
        integer_macs: the part of effective_macs whose input was integer spikes.
        unit_acs: the accumulations that replace integer_macs when a spike of level n is sent as n unit spikes.
        zero_, binary_, ternary_, integer_, real_elements: input elements by the alphabet of the vector they stood in.
        nonzeros: input elements that are not 0.
        events_in: those of them that stood in a binary, ternary or integer vector: one for each spike that was read.
        largest_level: the largest |value| of an integer vector (a maximum, not a sum).
        fan_out: weights that one input element meets (a maximum).
    Elementwise operations as performed, by class: see ELEMENTWISE. `compare` includes max, min and relu.
    Memory, in elements:
        weights_once: distinct weights that met a nonzero input in the whole phase: perfect reuse over batch and time.
        weights_per_event: weights fetched when each nonzero input fetches its row, with no reuse.
        weights_dense: weights fetched when every vector fetches all of them, with no reuse.
        activation_reads, activation_writes: elements of operands that are not weights, and of results.
        state_reads, state_writes: elements of recurrent state; how much is carried stands in the Footprint.
    Neurons: neuron_updates, one per neuron and step; events_out, spikes emitted.
    """

    calls: int = 0
    dense_ops: int = 0
    effective_macs: int = 0
    effective_acs: int = 0
    weight_side_acs: int = 0
    integer_macs: int = 0
    unit_acs: int = 0
    zero_elements: int = 0
    binary_elements: int = 0
    ternary_elements: int = 0
    integer_elements: int = 0
    real_elements: int = 0
    nonzeros: int = 0
    events_in: int = 0
    largest_level: int = 0
    fan_out: int = 0
    add: int = 0
    mul: int = 0
    div: int = 0
    compare: int = 0
    select: int = 0
    exp: int = 0
    log: int = 0
    sigmoid: int = 0
    tanh: int = 0
    sqrt: int = 0
    rsqrt: int = 0
    trigonometric: int = 0
    weights_once: int = 0
    weights_per_event: int = 0
    weights_dense: int = 0
    activation_reads: int = 0
    activation_writes: int = 0
    state_reads: int = 0
    state_writes: int = 0
    neuron_updates: int = 0
    events_out: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        ours, theirs = vars(self), vars(other)
        return Counts(
            **{
                name: max(value, theirs[name]) if name in MAXIMA else value + theirs[name]
                for name, value in ours.items()
            }
        )

    @property
    def input_elements(self) -> int:
        """Elements that matrix products read from their inputs."""
        return (
            self.zero_elements
            + self.binary_elements
            + self.ternary_elements
            + self.integer_elements
            + self.real_elements
        )

    @property
    def effective_ops(self) -> int:
        return self.effective_macs + self.effective_acs

    @property
    def density(self) -> float | None:
        """Share of the input elements of matrix products that are not 0; None if there was no such input."""
        return self.nonzeros / self.input_elements if self.input_elements else None

    @property
    def alphabet(self) -> str | None:
        """The widest alphabet that was read: zero < binary < ternary < integer < real. None if nothing was read."""
        seen = [name for name in ALPHABETS if getattr(self, f"{name}_elements")]
        return seen[-1] if seen else None

    @property
    def is_spike_driven(self) -> bool:
        """True if every vector that a matrix product read was of spikes, one not silent: silence proves nothing."""
        return self.alphabet in SPIKES

    @property
    def elementwise(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ELEMENTWISE}

    def activation_bits(self, width: int) -> int:
        """Bits of all operands and results that are not weights, when a real number takes `width` bits.

        Inputs of matrix products take 1 bit per element if binary, 2 if ternary, and as many as the largest level
        needs, with a sign, if integer.
        """
        level_bits = min(self.largest_level.bit_length() + 1, width)
        narrow = (
            self.zero_elements + self.binary_elements + 2 * self.ternary_elements + level_bits * self.integer_elements
        )
        wide = self.activation_reads + self.activation_writes - (self.input_elements - self.real_elements)
        return narrow + width * wide

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


SHOWN_MODULES = 40
MAXIMA = ("largest_level", "fan_out")
QUANTITIES = tuple(field.name for field in fields(Counts))


def total(parts: Iterable[Counts]) -> Counts:
    """Return the sum of counts of different sites."""
    values = dict.fromkeys(QUANTITIES, 0)
    for part in parts:
        for name in QUANTITIES:
            value = getattr(part, name)
            values[name] = max(values[name], value) if name in MAXIMA else values[name] + value
    return Counts(**values)


class Uncounted(NamedTuple):
    """An operator that has no rule: how often it ran, and how many elements it returned."""

    operator: str
    calls: int
    elements: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What must be kept in memory for one text at a time, in elements; shared parameters count once."""

    parameters: int
    zero_parameters: int
    buffers: int
    state: int
    peak_activations: int
    """most elements that one operation read and wrote for one token"""

    def total_bytes(self, weight_bits: int, state_bits: int, activation_bits: int) -> int:
        bits = (
            weight_bits * (self.parameters + self.buffers)
            + state_bits * self.state
            + activation_bits * self.peak_activations
        )
        return -(-bits // 8)


@dataclass(frozen=True, kw_only=True, repr=False)
class Tally:
    """The result of a measurement: counts by site, tokens by phase, what had no rule, and the footprint."""

    sites: dict[Site, Counts]
    kinds: dict[str, str]
    """operator -> one of KINDS"""
    tokens: dict[str, int]
    """phase -> tokens read"""
    uncounted: tuple[Uncounted, ...]
    footprint: Footprint
    names: tuple[str, ...] = ()
    """paths of all modules of the model, those without work too; empty where nobody knows them"""

    def __repr__(self) -> str:
        """One line: a tally of thousands of sites is read by its methods, or printed as a table."""
        return (
            f"<Tally of {self.token_count():,} tokens, {len(self.modules())} modules, {len(self.sites)} sites, "
            f"{len(self.uncounted)} operators uncounted>"
        )

    def __str__(self) -> str:
        """A table: the matrix products by module, all work by kind, and what was not counted."""
        return tally_table(self)

    def select(
        self, *, module: str | None = None, kind: str | None = None, phase: str | None = None
    ) -> dict[Site, Counts]:
        """Return the sites at or below `module`, of one kind, of one phase; None takes all.

        Raises:
            ValueError: the model has no such module, or there is no such kind or phase.
        """
        known = self.names or tuple({site.module for site in self.sites})
        below = any(name == module or name.startswith(f"{module}.") for name in known)
        _check_known("module", module if module and not below else None, known)
        _check_known("kind", kind, KINDS)
        _check_known("phase", phase, (*self.tokens, *(site.phase for site in self.sites), *PHASES))

        def wanted(site: Site) -> bool:
            below = module is None or site.module == module or site.module.startswith(module + ".") or module == ""
            return (
                below and (kind is None or self.kinds[site.operator] == kind) and (phase is None or site.phase == phase)
            )

        return {site: counts for site, counts in self.sites.items() if wanted(site)}

    def total(self, *, module: str | None = None, kind: str | None = None, phase: str | None = None) -> Counts:
        return total(self.select(module=module, kind=kind, phase=phase).values())

    def by_kind(self, phase: str | None = None) -> dict[str, Counts]:
        """Return kind -> sum, in the order of KINDS, without the kinds that did not occur."""
        sums = {kind: self.total(kind=kind, phase=phase) for kind in KINDS}
        return {kind: counts for kind, counts in sums.items() if counts.calls}

    def modules(self) -> list[str]:
        """Module paths that did work, in the order of their first operation."""
        return list(dict.fromkeys(site.module for site in self.sites))

    def token_count(self, phase: str | None = None) -> int:
        """Return the tokens read in a phase, or in all; 0 in one that did not occur; ValueError if there is none."""
        _check_known("phase", phase, (*self.tokens, *PHASES))
        return sum(self.tokens.values()) if phase is None else self.tokens.get(phase, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: a list of sites, each with its counts that are not 0."""
        sites = [
            {
                **site._asdict(),
                "kind": self.kinds[site.operator],
                **{name: value for name, value in counts.to_dict().items() if value},
            }
            for site, counts in self.sites.items()
        ]
        return {
            "tokens": self.tokens,
            "sites": sites,
            "uncounted": [item._asdict() for item in self.uncounted],
            "footprint": asdict(self.footprint),
        }


def _check_known(what: str, name: str | None, known: Iterable[str]) -> None:
    known = list(dict.fromkeys(known))
    if name is None or name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    raise ValueError(f"there is no {what} {name!r}; {f'did you mean {near[0]!r}?' if near else f'known: {listed}'}")


def tally_table(tally: Tally) -> str:
    """Return a tally as text: matrix products by module, all work by kind, tokens, and what has no rule."""
    header = ["", "dense products", "MACs", "ACs", "unit ACs", "nonzero inputs", "elementwise"]
    modules = [(name, total(c for site, c in tally.sites.items() if site.module == name)) for name in tally.modules()]
    products = [(name, counts) for name, counts in modules if counts.dense_ops]
    shown = products if len(products) <= SHOWN_MODULES else products[: SHOWN_MODULES - 1]
    rows = [header, *(_row(name or "(the model)", counts) for name, counts in shown)]
    if len(shown) < len(products):
        left_out = products[len(shown) :]
        rows.append(_row(f"{len(left_out)} more modules", total(counts for _, counts in left_out)))
    rows += [[""] * len(header)] + [_row(f"kind: {kind}", counts) for kind, counts in tally.by_kind().items()]
    rows += [_row("all", tally.total())]
    read = ", ".join(f"{number:,} in {phase}" for phase, number in tally.tokens.items())
    uncounted = ", ".join(f"{item.operator} ({item.calls:,} calls)" for item in tally.uncounted) or "nothing"
    return "\n".join([text_table(rows), f"tokens: {read or 'none'}", f"uncounted: {uncounted}"])


def _row(name: str, counts: Counts) -> list[str]:
    density = "" if counts.density is None else f"{counts.density:.1%}"
    amounts = (counts.dense_ops, counts.effective_macs, counts.effective_acs, counts.unit_acs)
    return [name, *(f"{amount:,}" for amount in amounts), density, f"{sum(counts.elementwise.values()):,}"]
