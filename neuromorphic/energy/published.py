"""The arithmetic behind the saving that the SpikeGPT paper claims, so that it can be set beside what was counted."""

from dataclasses import dataclass

# the paper's energies of an operation; the rest of the field uses 4.6 and 0.9
MAC_PJ, AC_PJ = 4.5, 0.9


@dataclass(frozen=True, kw_only=True)
class PublishedSaving:
    """Energies of one pass over the text in one layer, and their ratios."""

    dense_pj: float
    spiking_pj: float
    projection_ratio: float
    """of one projection alone"""
    total_ratio: float
    """of the projections and the WKV, which is MACs on both sides"""


def published_saving(
    *,
    tokens: int = 3072,
    n_embd: int = 512,
    firing_rate: float = 0.15,
    mac_pj: float = MAC_PJ,
    ac_pj: float = AC_PJ,
    projection_factor: int = 12,
    wkv_factor: int = 7,
) -> PublishedSaving:
    """Return the saving by the formulas of the SpikeGPT paper; the defaults are its constants, and give 33.3 and 32.2.

    Dense: mac_pj (12 T d^2 + 7 T d). Spiking: firing_rate ac_pj 12 T d^2 + mac_pj 7 T d, with T tokens and d channels.

    The derivation is ours: the printed table sets SpikeGPT beside a GPT, and the sum of its rows gives neither ratio.
    The claimed 32.2 comes out against a dense RWKV with the same WKV on both sides; we have not seen the printed total.
    Left out on both sides: embedding, norms, gates, exponentials, the head, neuron updates and all memory traffic. The
    formula for the projections multiplies by a firing rate although what they read, in the published code, are no
    spikes: see `idealised_ops`.

    Source: Zhu et al., SpikeGPT, arXiv:2302.13939, energy table, constants and operation counts as quoted in secondary
    texts.

    Args:
        projection_factor: multiplications of all projections per token, in units of n_embd^2.
        wkv_factor: multiplications of the WKV per token, in units of n_embd.

    Raises:
        ValueError: firing_rate is outside (0, 1], or another argument is not positive.
    """
    if not 0 < firing_rate <= 1:
        raise ValueError(f"firing_rate must lie in (0, 1], got {firing_rate}")
    positive = {"tokens": tokens, "n_embd": n_embd, "mac_pj": mac_pj, "ac_pj": ac_pj}
    for name, value in (positive | {"projection_factor": projection_factor, "wkv_factor": wkv_factor}).items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    projection_ops, wkv_ops = projection_factor * tokens * n_embd**2, wkv_factor * tokens * n_embd
    dense_pj = mac_pj * (projection_ops + wkv_ops)
    spiking_pj = ac_pj * idealised_ops(projection_ops, firing_rate) + mac_pj * wkv_ops
    return PublishedSaving(
        dense_pj=dense_pj,
        spiking_pj=spiking_pj,
        projection_ratio=mac_pj / (firing_rate * ac_pj),
        total_ratio=dense_pj / spiking_pj,
    )


def idealised_ops(dense_ops: float, firing_rate: float) -> float:
    """Return dense operations times a firing rate: the accumulations that the usual recipe claims.

    What is wrong with it: it never looks at the operand. The rate is of a neuron somewhere in the model; whether this
    product reads that neuron's spikes, or numbers that were normalised and mixed in between, does not enter.
    `OpCounter` decides that from the tensor that was consumed.
    """
    return dense_ops * firing_rate
