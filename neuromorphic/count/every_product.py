"""The rival of a spiking network: the same numbers run as a quantised one, which skips no zero and sends no spike.

Both predict the same. What spikes save is then only what hardware makes of zeros and of products that are additions,
not what small whole numbers save on any hardware: Dampfhoffer et al. 2022 (doi 10.1109/TETCI.2022.3214509), Yan et al.
2024 (arXiv 2409.08290).
"""

from dataclasses import replace

from .counts import Counts, Tally


def every_product(tally: Tally) -> Tally:
    """Return the counts of the same model on hardware that does every product of what spikes were, as small integers.

    Products of spikes become MACs, zeros included; weights are fetched for every vector, and once per phase where they
    are reused. Inputs stay as narrow as their levels, neurons stay as they are (a quantiser has to be computed), and
    no event is sent. Products of real numbers, which skip zeros in neither, do not change.
    """
    sites = {
        site: _without_events(counts, tally.tokens.get(site.phase, 1)) if counts.dense_ops else _silent(counts)
        for site, counts in tally.sites.items()
    }
    return replace(tally, sites=sites)


def level_bits(tally: Tally) -> int:
    """Return the bits of the widest whole number that a product of spikes read, with its sign; 0 without any."""
    levels = [counts.largest_level or 1 for counts in tally.sites.values() if counts.is_spike_driven]
    return max(levels).bit_length() + 1 if levels else 0


def _without_events(counts: Counts, tokens: int) -> Counts:
    if not counts.is_spike_driven:
        return counts
    # of products token by token the vectors are the tokens
    once = max(counts.weights_once, counts.weights_dense // max(tokens, 1))
    return replace(
        counts,
        effective_macs=counts.dense_ops,
        **dict.fromkeys(("effective_acs", "weight_side_acs", "integer_macs", "unit_acs", "repeated_acs"), 0),
        events_in=0,
        weights_once=once,
        weights_per_event=counts.weights_dense,
        repeated_weights=0,
    )


def _silent(counts: Counts) -> Counts:
    return replace(counts, events_out=0, repeated_events=0)
