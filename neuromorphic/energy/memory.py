"""What fetching weights and moving activations and state costs, all in the one level that holds the whole model."""

from collections.abc import Iterable, Mapping

from ..count.counter import DECODE
from ..count.counts import Counts, Site, total
from .prices import Profile
from .products import fetched_weights
from .terms import Amount, Charge, exactly

# operators that must write their result to memory even when the elementwise ones around them are fused
UNFUSED_KINDS = ("matmul", "convolution", "scan", "neuron", "embedding")


def memory_traffic(
    sites: Mapping[Site, Counts], kinds: Mapping[str, str], profile: Profile, footprint_bytes: int
) -> list[Charge]:
    """Return the charges for weights, activations and state."""
    memory = profile.memory_for(footprint_bytes)
    read, write = (memory.read, memory.write) if memory else (None, None)
    moved = total(sites.values())
    bits_read, bits_written = _activation_bits(sites.values(), profile)
    low_read, low_written = _activation_bits(
        (counts for site, counts in sites.items() if kinds[site.operator] in UNFUSED_KINDS), profile
    )
    activations = (
        (Amount(low_read, bits_read, bits_read), read),
        (Amount(low_written, bits_written, bits_written), write),
    )
    state = (
        (exactly(profile.state_bits * moved.state_reads), read),
        (exactly(profile.state_bits * moved.state_writes), write),
    )

    def note(text: str) -> str:
        return text if memory else _why_unpriced(profile, footprint_bytes)

    return [
        Charge(
            "weights",
            fetched_weights(moved, profile),
            ((_weight_bits(sites, profile), read),),
            note("low: once per prefill; central: for each event; high: all, always"),
        ),
        Charge(
            "activations",
            moved.activation_reads + moved.activation_writes,
            activations,
            note("low: elementwise operations fused"),
        ),
        Charge("state", moved.state_reads + moved.state_writes, state, note("every token, active or not")),
    ]


def _weight_bits(sites: Mapping[Site, Counts], profile: Profile) -> Amount:
    """Return the bits of weights that are fetched; text by text there is no reuse in decoding.

    A convolution notes its whole kernel as needed once, which can be more than a sparse input fetches, and an operator
    may declare anything; `low` and `high` are therefore taken as the smaller and the larger of their two counts.
    """
    low = central = high = 0
    for site, counts in sites.items():
        fetched = fetched_weights(counts, profile)
        low += fetched if site.phase == DECODE else min(counts.weights_once, fetched)
        central += fetched
        high += max(counts.weights_dense, fetched)
    return Amount(*(profile.weight_bits * weights for weights in (low, central, high)))


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
