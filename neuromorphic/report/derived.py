"""Numbers that figures and tables both show, computed from a Measurement; no drawing and no formatting here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..count.counts import ELEMENTWISE
from .context import ContextPoint
from .measurement import QUANTISED, Measurement, NeuronPlace

PREFILL = "prefill"
STATE_BITS = 32
"""width in which states and key-value caches are compared"""
# the terms of an estimate that are work; the others move bits and spikes
_OPERATIONS = frozenset(("mac", "ac", "neuron_update", *ELEMENTWISE))


class Work(NamedTuple):
    """Operations per token, by what one of them costs."""

    macs: float
    acs: float
    elementwise: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated energy of one token by one price profile; a part of the truth where terms are unpriced."""

    profile: str
    low_pj: float
    central_pj: float
    high_pj: float
    unpriced: tuple[str, ...]
    ops: float = 0.0
    """products, neuron updates and elementwise operations of a token"""
    unpriced_ops: float = 0.0
    """those of them that have no price"""

    @property
    def is_complete(self) -> bool:
        return not self.unpriced

    @property
    def says_little(self) -> bool:
        """True if most operations have no price: then the sum stands for little of the work, and compares with none."""
        return 2 * self.unpriced_ops > self.ops


def elementwise_ops(measurement: Measurement) -> float:
    """Return the elementwise operations per token of all classes, as performed."""
    counts = measurement.per_token.get(PREFILL, {})
    return sum(counts.get(name, 0.0) for name in ELEMENTWISE)


def dense_work(measurement: Measurement) -> Work:
    """Return what the model costs when every product is performed, zeros included."""
    return Work(sum(layer.dense_ops for layer in measurement.layers), 0.0, elementwise_ops(measurement))


def built_work(measurement: Measurement) -> Work:
    """Return what the model costs as built: products with a zero skipped, accumulations only where spikes were read."""
    macs = sum(layer.built_macs for layer in measurement.layers)
    return Work(macs, sum(layer.built_acs for layer in measurement.layers), elementwise_ops(measurement))


def idealised_work(measurement: Measurement) -> Work | None:
    """Return what the published arithmetic would say, and as built what it leaves out; None without spikes."""
    covered = [layer.idealised_acs for layer in measurement.layers if layer.idealised_acs is not None]
    if not covered:
        return None
    left_out = [layer for layer in measurement.layers if layer.idealised_acs is None]
    acs = sum(covered) + sum(layer.built_acs for layer in left_out)
    return Work(sum(layer.built_macs for layer in left_out), acs, 0.0)


def work_by_kind(measurement: Measurement) -> dict[str, Work]:
    """Return the three views of one model, in the order of a table; without "idealised" where there are no spikes."""
    idealised = idealised_work(measurement)
    views = {"dense": dense_work(measurement), "as built": built_work(measurement)}
    return views if idealised is None else views | {"idealised": idealised}


def effective_ops(measurement: Measurement) -> float:
    """Return MACs and ACs of matrix products per token."""
    work = built_work(measurement)
    return work.macs + work.acs


def tokens_per_byte(measurement: Measurement) -> float:
    return measurement.tokens / measurement.text_bytes if measurement.text_bytes else float("nan")


def state_bytes(measurement: Measurement) -> float:
    """Return the bytes carried for one text, at any length, or after `state_tokens`."""
    return measurement.state_elements * STATE_BITS / 8


def cache_bytes_per_token(measurement: Measurement) -> float:
    """Return the bytes that a Transformer of the same layers and width keeps for every token of its context."""
    return measurement.key_value_elements_per_token * STATE_BITS / 8


def context_points(measurements: Sequence[Measurement]) -> list[ContextPoint]:
    """Return the points of what memory costs and buys, each once: runs measured together have the same ones."""
    found = {(p.model, p.policy, p.context): p for measurement in measurements for p in measurement.context}
    return list(found.values())


def estimates(measurement: Measurement, phase: str = PREFILL) -> dict[str, Estimate]:
    """Return profile -> estimate of one token, without the tables that have a price for nothing the model does."""
    found = measurement.energy.get(phase, {}).items()
    return {name: _estimate(name, energy) for name, energy in found if energy["central_pj"] is not None}


def _estimate(name: str, energy: dict[str, Any]) -> Estimate:
    ends = {key: energy[key] for key in ("low_pj", "central_pj", "high_pj")}
    ops = [term for term in energy["terms"] if term["name"] in _OPERATIONS]
    return Estimate(
        profile=name,
        unpriced=tuple(energy["unpriced"]),
        ops=sum(term["count"] for term in ops) / energy["tokens"],
        unpriced_ops=sum(term["count"] for term in ops if not term["priced"]) / energy["tokens"],
        **ends,
    )


class LayerFiring(NamedTuple):
    """How the neurons of one layer fired."""

    layer: str
    place: NeuronPlace
    firing_rate: float
    neurons: int
    dead: int
    saturated: int


def firing_layers(measurement: Measurement) -> list[LayerFiring]:
    """Return the firing of each layer in order; empty without spikes."""
    layers = (measurement.firing or {}).get("layers", {})
    return [
        LayerFiring(
            name,
            measurement.wording.place(name),
            *(layer[key] for key in ("firing_rate", "neurons", "dead", "saturated")),
        )
        for name, layer in layers.items()
    ]


def phases(measurements: Sequence[Measurement]) -> list[str]:
    """Return the phases that have an energy estimate, in the order of their first appearance."""
    return list(dict.fromkeys(phase for measurement in measurements for phase in measurement.energy))


def twin_of(model: Measurement, measurements: Sequence[Measurement]) -> Measurement | None:
    """Return the first dense model of the family of `model`; a spiking one with every product done is none."""
    return next(
        (
            measurement
            for measurement in measurements
            if measurement.firing_rate is None and measurement.block != QUANTISED and measurement.family == model.family
        ),
        None,
    )


def spiking(measurements: Sequence[Measurement]) -> list[Measurement]:
    return [measurement for measurement in measurements if measurement.firing_rate is not None]
