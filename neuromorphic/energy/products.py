"""What matrix products cost, and the spikes that are sent to them.

How a spike of n travels is the machine's affair, and its table says it (`prices.SENDING`): as n unit spikes, each of
them an event that fetches its weights, or as one event that carries n.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ..count.counts import Counts, Site
from .prices import UNITS, Price, Profile
from .terms import Amount, Charge, exactly


class _SiteArithmetic(NamedTuple):
    macs: int
    acs: int
    skipped_macs: int
    """products with a zero, which hardware that does not look for zeros performs all the same"""
    skipped_acs: int
    adds_units: bool
    """integer spikes are added as often as they have units, and not multiplied"""


def arithmetic(sites: Mapping[Site, Counts], profile: Profile) -> list[Charge]:
    """Return the charges of matrix products; `high` performs the products with a zero too, where numbers are real."""
    mac, ac = profile.prices.get("mac"), profile.prices.get("ac")
    parts = [_site_arithmetic(counts, profile) for counts in sites.values()]
    macs, acs = sum(part.macs for part in parts), sum(part.acs for part in parts)
    dense_macs = macs + sum(part.skipped_macs for part in parts)
    dense_acs = acs + sum(part.skipped_acs for part in parts)
    note = "high: products with a zero too, where real numbers are read"
    integer_sites = sum(counts.integer_macs > 0 for counts in sites.values())
    if integer_sites:
        adding = sum(part.adds_units for part in parts)
        how = "sent" if profile.integer_spikes == UNITS else "fetched once and added"
        cheaper = "" if profile.integer_spikes == UNITS else ", where that is cheaper than to multiply"
        note += f"; integer spikes are {how} as unit spikes at {adding} of {integer_sites} sites{cheaper}"
    return [
        Charge("mac", macs, ((Amount(macs, macs, dense_macs), mac),), note),
        Charge("ac", acs, ((Amount(acs, acs, dense_acs), ac),), note),
    ]


def events(sites: Mapping[Site, Counts], profile: Profile) -> Charge:
    """Return the charge of the spikes that were emitted."""
    price = profile.prices.get("event")
    emitted = sum(events_of(counts, profile) for counts in sites.values())
    return Charge("event", emitted, ((exactly(emitted), price),), "" if price else "spikes that were emitted")


def events_of(counts: Counts, profile: Profile) -> int:
    """Return the events that are sent: of an integer spike one, or one for each of its units."""
    return counts.events_out + counts.repeated_events * (profile.integer_spikes == UNITS)


def fetched_weights(counts: Counts, profile: Profile) -> int:
    """Return the weights that are fetched when each event fetches its row."""
    return counts.weights_per_event + counts.repeated_weights * (profile.integer_spikes == UNITS)


def _site_arithmetic(counts: Counts, profile: Profile) -> _SiteArithmetic:
    mac, ac = profile.prices.get("mac"), profile.prices.get("ac")
    # a price per event is for a spike that came in; real numbers that meet ternary weights are no events
    not_events = counts.weight_side_acs if ac and ac.unit == "pJ/event" and counts.real_elements else 0
    sends_units = profile.integer_spikes == UNITS
    adds_units = counts.integer_macs > 0 and (sends_units or _adding_is_cheaper(counts, mac, ac))
    replaced, units = (counts.integer_macs, counts.unit_acs) if adds_units else (0, 0)
    repeated = counts.repeated_acs if sends_units and not not_events else 0
    skipped = 0 if counts.is_spike_driven else max(counts.dense_ops - counts.effective_ops, 0)
    adds_only = counts.effective_macs == 0 and counts.weight_side_acs > not_events
    return _SiteArithmetic(
        macs=counts.effective_macs - replaced + not_events,
        acs=counts.effective_acs + units + repeated - not_events,
        skipped_macs=0 if adds_only else skipped,
        skipped_acs=skipped if adds_only else 0,
        adds_units=adds_units,
    )


def _adding_is_cheaper(counts: Counts, mac: Price | None, ac: Price | None) -> bool:
    """True also on hardware that has no price for a MAC and one for an AC: it has no other way."""
    if mac is None or ac is None:
        return ac is not None
    return counts.unit_acs * ac.central_pj < counts.integer_macs * mac.central_pj
