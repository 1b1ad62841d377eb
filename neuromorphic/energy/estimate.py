"""What a Tally would cost by one price profile: an interval per token, what it is made of, and what has no price.

An estimate from a table, never a measurement. `low` is the most favourable reading of the counts and the prices, `high`
the least favourable, `central` the one between; what differs is said at each term, and what was assumed in
`EnergyEstimate.assumptions`. The terms: `products.py`, `neurons.py`, `memory.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..count.counts import Counts, Site, Tally, total
from ..count.text import csv_table, latex_table, text_table
from .break_even import BreakEven, break_even_density, mac_over_ac
from .memory import memory_traffic
from .neurons import Neurons, find_neurons, neurons_and_elementwise
from .prices import SENDING, Profile, as_profile, check_sending
from .products import arithmetic, events
from .terms import Charge, Term, unpriced

__all__ = ["BreakEven", "EnergyEstimate", "Term", "break_even_density", "estimate"]

# vectors that share one fetch of the weights, as an example of what a batch or a prefill does to events
BATCH_REUSE = 32
INCLUDED_IN_ALL_IN = ("neuron_update", "weights", "activations", "state", "event")
ENDS = ("low", "central", "high")
SUM = "sum of what has a price"
NAMED_MODULES = 6


@dataclass(frozen=True, kw_only=True)
class EnergyEstimate:
    """Energies per token are sums over the terms that have a price, None if none has one; see `is_complete`."""

    profile: Profile
    tokens: int
    terms: tuple[Term, ...]
    memory_level: str | None
    footprint_bytes: int
    low_pj: float | None
    central_pj: float | None
    high_pj: float | None
    unpriced: tuple[str, ...]
    """terms that have a count and no price: the energies are too low by what they cost"""
    included: tuple[str, ...]
    """terms that an all-in price contains already"""
    mac_over_ac: float | None
    """price of a MAC over price of an AC: how much this table favours spikes before anything is counted"""
    assumptions: Mapping[str, str]
    """what was assumed, by its name, where it matters to what was counted: "integer spikes", "neurons", "memory" """

    @property
    def is_complete(self) -> bool:
        return not self.unpriced

    @property
    def integer_spikes(self) -> str:
        """How a spike of n was charged: "units" or "graded", see `prices.SENDING`."""
        return self.profile.integer_spikes

    def __str__(self) -> str:
        """What was assumed, then a table: a line per term in pJ per token, and the sum, with a > if it is too low."""
        said = [f"{self.profile.title}; grade: {self.profile.grade}; an estimate, not a measurement"]
        said += [f"{name}: {words}" for name, words in self.assumptions.items()]
        return "\n".join([*said, text_table(self._cells())])

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per term, as `pandas.DataFrame(estimate.rows())` takes them; without the sum."""
        return [{"profile": self.profile.name, "tokens": self.tokens, **asdict(term)} for term in self.terms]

    def to_csv(self) -> str:
        """Return `rows` as text for a file: a header and one line per term."""
        return csv_table(["profile", "tokens", *Term.__dataclass_fields__], self.rows())

    def to_latex(self) -> str:
        """Return the table that is printed as a tabular of LaTeX; it needs the package booktabs."""
        *terms, last = self._cells()
        return latex_table([*terms, [""] * len(last), last])

    def _cells(self) -> list[list[str]]:
        header = [f"pJ per token, {self.profile.name}", "count per token", *ENDS]
        found = [
            [term.name, _number(term.count / self.tokens), *(_picojoule(getattr(term, f"{end}_pj")) for end in ENDS)]
            for term in self.terms
        ]
        mark = "" if self.is_complete else "> "
        return [header, *found, [SUM, "", *(_picojoule(getattr(self, f"{end}_pj"), mark) for end in ENDS)]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: of the profile its name, source and limits, and where events break even."""
        values = {name: value for name, value in vars(self).items() if name not in ("profile", "terms")}
        source = {
            name: getattr(self.profile, name)
            for name in ("title", "citation", "grade", "scope", "includes", "excludes", "integer_spikes")
        }
        break_even = {
            str(reuse): asdict(break_even_density(self.profile, reuse=reuse, footprint_bytes=self.footprint_bytes))
            for reuse in (1, BATCH_REUSE)
        }
        terms = [asdict(term) for term in self.terms]
        return {"profile": self.profile.name, **source, **values, "terms": terms, "break_even": break_even}


def estimate(
    tally: Tally, profile: Profile | str, phase: str | None = None, *, integer_spikes: str | None = None
) -> EnergyEstimate:
    """Return the estimated energy of one token of `phase`, or of all phases; `profile` may be a bundled one's name.

    Args:
        integer_spikes: how a spike of n travels, "units" or "graded" (`prices.SENDING`); None: as the table says.

    Raises:
        PriceError: there is no price table of this name, or its machine does not send integer spikes like that.
        ValueError: no tally, no such phase, or no token was read in it.
    """
    if not isinstance(tally, Tally):
        raise ValueError(f"want a Tally, as OpCounter.tally() returns it, got {tally!r:.80}")
    profile = as_profile(profile)
    if integer_spikes is not None:
        profile = replace(profile, integer_spikes=integer_spikes)
        check_sending(profile, f"price profile {profile.name!r}")
    tokens = tally.token_count(phase)
    if tokens == 0:
        read = ", ".join(f"{name} ({number} tokens)" for name, number in tally.tokens.items()) or "nothing"
        raise ValueError(f"no token was read in phase {phase!r}, so there is no energy per token; the tally has {read}")
    footprint_bytes = tally.footprint.total_bytes(profile.weight_bits, profile.state_bits, profile.activation_bits)
    memory = profile.memory_for(footprint_bytes)
    sites = tally.select(phase=phase)
    neurons = find_neurons(sites, tally.kinds)
    charges = _charges(sites, tally.kinds, neurons, profile, footprint_bytes)
    terms = [charge.term(tokens) for charge in charges if charge.occurs]
    if tally.uncounted:
        names = ", ".join(item.operator for item in tally.uncounted)
        calls = sum(item.calls for item in tally.uncounted)
        note = "they have no rule, so what they compute is unknown; the count is of calls"
        terms.append(unpriced(f"uncounted operators: {names}", calls, note))
    return EnergyEstimate(
        profile=profile,
        tokens=tokens,
        terms=tuple(terms),
        memory_level=memory.name if memory else None,
        footprint_bytes=footprint_bytes,
        low_pj=_sum([term.low_pj for term in terms]),
        central_pj=_sum([term.central_pj for term in terms]),
        high_pj=_sum([term.high_pj for term in terms]),
        unpriced=tuple(term.name for term in terms if not term.priced),
        included=INCLUDED_IN_ALL_IN if profile.scope == "all_in" else (),
        mac_over_ac=mac_over_ac(profile.prices.get("mac"), profile.prices.get("ac")),
        assumptions=_assumptions(total(sites.values()), neurons, profile, footprint_bytes),
    )


def _charges(
    sites: Mapping[Site, Counts], kinds: Mapping[str, str], neurons: Neurons, profile: Profile, footprint_bytes: int
) -> list[Charge]:
    charges = [*arithmetic(sites, profile), *neurons_and_elementwise(sites, neurons, profile)]
    if profile.scope == "all_in":
        return charges
    return [*charges, *memory_traffic(sites, kinds, profile, footprint_bytes), events(sites, profile)]


def _assumptions(counts: Counts, neurons: Neurons, profile: Profile, footprint_bytes: int) -> dict[str, str]:
    said = {}
    if counts.integer_elements or counts.repeated_events:
        said["integer spikes"] = f"{profile.integer_spikes}, {SENDING[profile.integer_spikes]}"
    if "neuron_update" in profile.prices or profile.scope == "all_in":
        if neurons.replaced:
            said["neurons"] = f"an update stands for all elementwise operations of {_modules(neurons.replaced)}"
        if neurons.shared:
            words = f"low and central: those of {_modules(neurons.shared)} are the neurons', high: others' besides"
            said["neurons among other work"] = words
    memory = profile.memory_for(footprint_bytes)
    if memory:
        said["memory"] = f"everything lies in {memory.name}, the smallest level that holds {footprint_bytes:,} bytes"
    return said


def _modules(sites: Iterable[Site]) -> str:
    names = sorted({site.module or "(the model)" for site in sites})
    more = f" and {len(names) - NAMED_MODULES} more" if len(names) > NAMED_MODULES else ""
    return ", ".join(names[:NAMED_MODULES]) + more


def _picojoule(energy_pj: float | None, mark: str = "") -> str:
    return "no price" if energy_pj is None else mark + _number(energy_pj)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _sum(energies: list[float | None]) -> float | None:
    """Return the sum of what is known; where nothing is known, that is not 0."""
    known = [energy for energy in energies if energy is not None]
    return sum(known, 0.0) if known or not energies else None
