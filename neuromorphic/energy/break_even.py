"""At which density of spikes an event-driven product costs what a dense one does."""

from dataclasses import dataclass

from .prices import Price, Profile, as_profile


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
        return BreakEven(mac_over_ac(mac, ac), None)
    fetch_pj = profile.weight_bits * memory.read.central_pj
    accumulator_pj = profile.state_bits * (memory.read.central_pj + memory.write.central_pj)
    event_pj, dense_pj = fetch_pj + ac.central_pj + accumulator_pj, fetch_pj / reuse + mac.central_pj
    return BreakEven(mac_over_ac(mac, ac), dense_pj / event_pj if event_pj else None)


def mac_over_ac(mac: Price | None, ac: Price | None) -> float | None:
    """Return the price of a MAC over that of an AC: how much a table favours spikes before anything is counted."""
    return mac.central_pj / ac.central_pj if mac and ac and ac.central_pj else None
