"""What a Tally would cost by one price profile: an interval per token, what it is made of, and what has no price.

An estimate from a table, never a measurement. `low` is the most favourable reading of the counts and the prices, `high`
the least favourable, `central` the one between; what differs is said at each term. Break-even: see
`break_even_density`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..count.counter import DECODE
from ..count.counts import Counts, Site, Tally, total
from ..count.text import text_table
from .prices import Price, Profile, as_profile

# operators that must write their result to memory even when the elementwise ones around them are fused
UNFUSED_KINDS = ("matmul", "convolution", "scan", "neuron", "embedding")
# vectors that share one fetch of the weights, as an example of what a batch or a prefill does to events
BATCH_REUSE = 32
INCLUDED_IN_ALL_IN = ("neuron_update", "weights", "activations", "state", "event")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of an estimate: `count` is of the whole measurement, energies are per token, None without a price."""

    name: str
    count: int
    low_pj: float | None
    central_pj: float | None
    high_pj: float | None
    priced: bool
    note: str


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

    @property
    def is_complete(self) -> bool:
        return not self.unpriced

    def __str__(self) -> str:
        """A table: one line per term, in pJ per token."""
        ends = ("low", "central", "high")
        parts = [*((term.name, term) for term in self.terms), ("sum of what has a price", self)]
        found = [(name, [getattr(part, f"{end}_pj") for end in ends]) for name, part in parts]
        rows = [[name, *("no price" if pj is None else f"{pj:,.4g}" for pj in energies)] for name, energies in found]
        return text_table([[f"pJ per token, {self.profile.name}", *ends], *rows])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: of the profile its name, source and limits, and where events break even."""
        values = {name: value for name, value in vars(self).items() if name not in ("profile", "terms")}
        source = {
            name: getattr(self.profile, name)
            for name in ("title", "citation", "grade", "scope", "includes", "excludes")
        }
        break_even = {
            str(reuse): asdict(break_even_density(self.profile, reuse=reuse, footprint_bytes=self.footprint_bytes))
            for reuse in (1, BATCH_REUSE)
        }
        terms = [asdict(term) for term in self.terms]
        return {"profile": self.profile.name, **source, **values, "terms": terms, "break_even": break_even}


def estimate(tally: Tally, profile: Profile | str, phase: str | None = None) -> EnergyEstimate:
    """Return the estimated energy of one token of `phase`, or of all phases; `profile` may be a bundled one's name.

    Raises:
        PriceError: there is no price table of this name.
        ValueError: no tally, or no token was read in that phase.
    """
    if not isinstance(tally, Tally):
        raise ValueError(f"want a Tally, as OpCounter.tally() returns it, got {tally!r:.80}")
    profile = as_profile(profile)
    tokens = tally.token_count(phase)
    if tokens == 0:
        read = ", ".join(f"{name} ({number} tokens)" for name, number in tally.tokens.items()) or "nothing"
        raise ValueError(f"no token was read in phase {phase!r}, so there is no energy per token; the tally has {read}")
    footprint_bytes = tally.footprint.total_bytes(profile.weight_bits, profile.state_bits, profile.activation_bits)
    memory = profile.memory_for(footprint_bytes)
    terms = [charge.term(tokens) for charge in _charges(tally, profile, phase, footprint_bytes) if charge.occurs]
    if tally.uncounted:
        names = ", ".join(item.operator for item in tally.uncounted)
        calls = sum(item.calls for item in tally.uncounted)
        terms.append(
            _unpriced(
                f"uncounted operators: {names}",
                calls,
                "they have no rule, so what they compute is unknown; the count is of calls",
            )
        )
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
        mac_over_ac=_ratio(profile.prices.get("mac"), profile.prices.get("ac")),
    )


def _charges(tally: Tally, profile: Profile, phase: str | None, footprint_bytes: int) -> "list[_Charge]":
    sites = tally.select(phase=phase)
    neurons = {site: counts for site, counts in sites.items() if tally.kinds[site.operator] == "neuron"}
    if profile.scope == "all_in":
        # the price contains the neurons; work outside of them, such as a norm, was no part of what was measured
        return [*_arithmetic(sites, profile), *_elementwise(sites, neurons, profile)]
    return [
        *_arithmetic(sites, profile),
        *_neurons_and_elementwise(sites, neurons, profile),
        *_memory_traffic(sites, tally.kinds, profile, footprint_bytes),
        _events(sites, profile),
    ]


class _Amount(NamedTuple):
    """How many operations or bits of a whole measurement are charged."""

    low: int
    central: int
    high: int


@dataclass(frozen=True)
class _Charge:
    """What a term is made of: amounts, each with its price."""

    name: str
    count: int
    parts: tuple[tuple[_Amount, Price | None], ...]
    note: str

    @property
    def occurs(self) -> bool:
        return any(amount.high for amount, _ in self.parts)

    def term(self, tokens: int) -> Term:
        priced = [(amount, price) for amount, price in self.parts if price is not None]
        if len(priced) < len(self.parts):
            return _unpriced(self.name, self.count, self.note)
        low = sum(amount.low * price.low_pj for amount, price in priced) / tokens
        central = sum(amount.central * price.central_pj for amount, price in priced) / tokens
        high = sum(amount.high * price.high_pj for amount, price in priced) / tokens
        return Term(
            name=self.name, count=self.count, low_pj=low, central_pj=central, high_pj=high, priced=True, note=self.note
        )


def _unpriced(name: str, count: int, note: str) -> Term:
    return Term(name=name, count=count, low_pj=None, central_pj=None, high_pj=None, priced=False, note=note)


def _exactly(amount: int) -> _Amount:
    return _Amount(amount, amount, amount)


def _sum(energies: list[float | None]) -> float | None:
    """Return the sum of what is known; where nothing is known, that is not 0."""
    known = [energy for energy in energies if energy is not None]
    return sum(known, 0.0) if known or not energies else None


def _ratio(mac: Price | None, ac: Price | None) -> float | None:
    return mac.central_pj / ac.central_pj if mac and ac and ac.central_pj else None


# arithmetic -----------------------------------------------------------------------------------------------------------


class _SiteArithmetic(NamedTuple):
    macs: int
    acs: int
    skipped_macs: int
    """products with a zero, which hardware that does not look for zeros performs all the same"""
    skipped_acs: int
    sends_units: bool
    """integer spikes are sent as unit spikes"""


def _arithmetic(sites: Mapping[Site, Counts], profile: Profile) -> list[_Charge]:
    """Return the charges of matrix products; `high` performs the products with a zero too, where numbers are real."""
    mac, ac = profile.prices.get("mac"), profile.prices.get("ac")
    parts = [_site_arithmetic(counts, mac, ac) for counts in sites.values()]
    macs, acs = sum(part.macs for part in parts), sum(part.acs for part in parts)
    dense_macs = macs + sum(part.skipped_macs for part in parts)
    dense_acs = acs + sum(part.skipped_acs for part in parts)
    integer_sites, unit_sites = (
        sum(counts.integer_macs > 0 for counts in sites.values()),
        sum(part.sends_units for part in parts),
    )
    zeros = "high: products with a zero too, where real numbers are read"
    units = (
        f"; integer spikes are sent as unit spikes at {unit_sites} of {integer_sites} sites, where that is cheaper"
        if integer_sites
        else ""
    )
    return [
        _Charge("mac", macs, ((_Amount(macs, macs, dense_macs), mac),), zeros + units),
        _Charge("ac", acs, ((_Amount(acs, acs, dense_acs), ac),), _join(ac.note if ac else None, zeros + units)),
    ]


def _site_arithmetic(counts: Counts, mac: Price | None, ac: Price | None) -> _SiteArithmetic:
    # a price per event is for a spike that came in; numbers that meet ternary weights are no events
    not_events = counts.weight_side_acs if ac and ac.unit == "pJ/event" else 0
    sends_units = counts.integer_macs > 0 and _units_are_cheaper(counts, mac, ac)
    replaced, units = (counts.integer_macs, counts.unit_acs) if sends_units else (0, 0)
    skipped = 0 if counts.is_spike_driven else max(counts.dense_ops - counts.effective_ops, 0)
    adds_only = counts.effective_macs == 0 and counts.weight_side_acs > not_events
    return _SiteArithmetic(
        macs=counts.effective_macs - replaced + not_events,
        acs=counts.effective_acs + units - not_events,
        skipped_macs=0 if adds_only else skipped,
        skipped_acs=skipped if adds_only else 0,
        sends_units=sends_units,
    )


def _units_are_cheaper(counts: Counts, mac: Price | None, ac: Price | None) -> bool:
    """True also on hardware that has no price for a MAC and one for an AC: it has no other way."""
    if mac is None or ac is None:
        return ac is not None
    return counts.unit_acs * ac.central_pj < counts.integer_macs * mac.central_pj


def _join(*notes: str | None) -> str:
    return "; ".join(note for note in notes if note)


# neurons and elementwise operations -----------------------------------------------------------------------------------


def _neurons_and_elementwise(
    sites: Mapping[Site, Counts], neurons: Mapping[Site, Counts], profile: Profile
) -> list[_Charge]:
    """Return one charge for neuron updates, if they have a price, and one for each other class of elementwise work."""
    price = profile.prices.get("neuron_update")
    if price is None:
        return _elementwise(sites, {}, profile)
    # a neuron that does not declare its updates is not free: its operations are priced by class
    updated = {site: counts for site, counts in neurons.items() if counts.neuron_updates}
    updates = sum(counts.neuron_updates for counts in updated.values())
    note = _join(price.note, "replaces the elementwise operations of the neurons")
    return [
        _Charge("neuron_update", updates, ((_exactly(updates), price),), note),
        *_elementwise(sites, updated, profile),
    ]


def _elementwise(sites: Mapping[Site, Counts], left_out: Mapping[Site, Counts], profile: Profile) -> list[_Charge]:
    performed = total(counts for site, counts in sites.items() if site not in left_out).elementwise
    return [
        _Charge(name, count, ((_exactly(count), profile.prices.get(name)),), "") for name, count in performed.items()
    ]


def _events(sites: Mapping[Site, Counts], profile: Profile) -> _Charge:
    events, price = sum(counts.events_out for counts in sites.values()), profile.prices.get("event")
    return _Charge("event", events, ((_exactly(events), price),), price.note if price else "spikes that were emitted")


# memory ---------------------------------------------------------------------------------------------------------------


def _memory_traffic(
    sites: Mapping[Site, Counts], kinds: Mapping[str, str], profile: Profile, footprint_bytes: int
) -> list[_Charge]:
    """Return the charges for weights, activations and state, all in the one level that holds the whole footprint."""
    memory = profile.memory_for(footprint_bytes)
    read, write = (memory.read, memory.write) if memory else (None, None)
    moved = total(sites.values())
    bits_read, bits_written = _activation_bits(sites.values(), profile)
    low_read, low_written = _activation_bits(
        (counts for site, counts in sites.items() if kinds[site.operator] in UNFUSED_KINDS), profile
    )
    weights = ((_weight_bits(sites, profile), read),)
    activations = (
        (_Amount(low_read, bits_read, bits_read), read),
        (_Amount(low_written, bits_written, bits_written), write),
    )
    state = (
        (_exactly(profile.state_bits * moved.state_reads), read),
        (_exactly(profile.state_bits * moved.state_writes), write),
    )

    def note(text: str) -> str:
        return text if memory else _why_unpriced(profile, footprint_bytes)

    return [
        _Charge(
            "weights",
            moved.weights_per_event,
            weights,
            note("low: once per prefill; central: for each nonzero input; high: all, always"),
        ),
        _Charge(
            "activations",
            moved.activation_reads + moved.activation_writes,
            activations,
            note("low: elementwise operations fused"),
        ),
        _Charge("state", moved.state_reads + moved.state_writes, state, note("every token, active or not")),
    ]


def _weight_bits(sites: Mapping[Site, Counts], profile: Profile) -> _Amount:
    """Return the bits of weights that are fetched; text by text there is no reuse in decoding.

    A convolution notes its whole kernel as needed once, which can be more than a sparse input fetches, and an operator
    may declare anything; `low` and `high` are therefore taken as the smaller and the larger of their two counts.
    """
    low = sum(
        c.weights_per_event if site.phase == DECODE else min(c.weights_once, c.weights_per_event)
        for site, c in sites.items()
    )
    central = sum(counts.weights_per_event for counts in sites.values())
    high = sum(max(counts.weights_dense, counts.weights_per_event) for counts in sites.values())
    return _Amount(*(profile.weight_bits * weights for weights in (low, central, high)))


def _activation_bits(parts: Iterable[Counts], profile: Profile) -> tuple[int, int]:
    """Return (bits read, bits written): results are written at full width, inputs of products are read at their own."""
    reads = writes = 0
    for counts in parts:
        written = profile.activation_bits * counts.activation_writes
        writes += written
        reads += counts.activation_bits(profile.activation_bits) - written
    return reads, writes


def _why_unpriced(profile: Profile, footprint_bytes: int) -> str:
    if not profile.memories:
        return "the table prices no memory"
    largest = profile.memories[-1]
    return (
        f"the model needs {footprint_bytes} bytes, "
        f"the largest memory with a price is {largest.name} ({largest.capacity_bytes} bytes)"
    )


# break-even -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BreakEven:
    """Density of the input at which accumulating events costs what dense MACs cost; below it events win.

    None where a price is missing. A value of 1 or more means that events win at every density.
    """

    without_memory: float | None
    with_memory: float | None


def break_even_density(profile: Profile | str, *, reuse: float = 1, footprint_bytes: int | None = None) -> BreakEven:
    """Return the densities s* at which spikes and a dense product cost the same, per weight.

    s* (fetch + AC + read and write of the accumulator) = fetch / reuse + MAC, at central prices. Fixed costs of
    events and addressing are 0. Both sides fetch from the level that holds `footprint_bytes`, and the accumulator
    lies there too; the dense side keeps its sum in a register. Without a footprint no level is known, and
    `with_memory` is None.

    Args:
        reuse: how many vectors share one dense fetch of a weight (batch, or tokens of a prefill), at least 1.

    Raises:
        ValueError: reuse is below 1.
    """
    if not reuse >= 1:
        raise ValueError(f"reuse must be at least 1 (each weight fetched for every vector), got {reuse}")
    profile = as_profile(profile)
    mac, ac = profile.prices.get("mac"), profile.prices.get("ac")
    memory = None if footprint_bytes is None else profile.memory_for(footprint_bytes)
    if mac is None or ac is None or memory is None:
        return BreakEven(_ratio(mac, ac), None)
    fetch_pj = profile.weight_bits * memory.read.central_pj
    accumulator_pj = profile.state_bits * (memory.read.central_pj + memory.write.central_pj)
    event_pj, dense_pj = fetch_pj + ac.central_pj + accumulator_pj, fetch_pj / reuse + mac.central_pj
    return BreakEven(_ratio(mac, ac), dense_pj / event_pj if event_pj else None)
