"""Everything that was measured of one model on one text, as plain values: what figures and reports are made from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..count.counts import MAXIMA, SPIKES, Counts, Tally
from ..energy.published import idealised_ops
from .context import ContextPoint

# `block` of the same model run as a quantised network, see `count.every_product`
QUANTISED = "quantised"


@dataclass(frozen=True, kw_only=True)
class LayerOps:
    """The matrix products of one module, per token; `idealised_acs` is what the published arithmetic would say."""

    module: str
    dense_ops: float
    effective_macs: float
    effective_acs: float
    unit_acs: float
    idealised_acs: float | None
    """dense_ops times the model's firing rate; None where the published arithmetic does not look, or without spikes"""
    density: float
    alphabet: str
    fan_out: int

    @property
    def is_spike_driven(self) -> bool:
        return self.alphabet in SPIKES

    @property
    def built_macs(self) -> float:
        """Multiply-accumulates as built: none where only spikes were read."""
        return 0.0 if self.is_spike_driven else self.effective_macs

    @property
    def built_acs(self) -> float:
        """Accumulations as built: a spike of level n is n unit spikes, each of which accumulates."""
        return self.effective_acs + self.unit_acs if self.is_spike_driven else self.effective_acs


@dataclass(frozen=True, kw_only=True)
class Raster:
    """The spikes of a few neurons of one layer while a prompt is read."""

    layer: str
    prompt: tuple[str, ...]
    """one label per token"""
    tokens: tuple[int, ...]
    """spike i came at token tokens[i] from neuron neurons[i]"""
    neurons: tuple[int, ...]
    n_neurons: int


class NeuronPlace(NamedTuple):
    """Where a layer of neurons stands, in the words of whoever built the model."""

    group: str
    """layers of one group share a colour: a half of a block, for instance"""
    part: str
    """layers of one part share a curve: one layer of each block, for instance"""
    block: int | None = None
    """how deep in the model; None outside its blocks"""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How the model and its layers of neurons are to be called where they are shown; nothing here was measured."""

    block: str = ""
    """how spikes enter, e.g. "dense" """
    places: Mapping[str, NeuronPlace] = field(default_factory=dict)
    """layer of neurons -> where it stands; a layer that is missing goes by its own name"""

    def place(self, layer: str) -> NeuronPlace:
        return self.places.get(layer, NeuronPlace("", layer))


@dataclass(frozen=True, kw_only=True, repr=False)
class Measurement:
    name: str
    block: str
    """how spikes enter, as the model's configuration says it"""
    text: str
    protocol: str
    tokens: int
    text_bytes: int
    parameters: int
    bits_per_byte: float
    firing_rate: float | None
    layers: tuple[LayerOps, ...]
    per_token: dict[str, dict[str, float]]
    """phase -> quantity of Counts -> amount per token, quantities that are 0 left out"""
    by_kind: dict[str, dict[str, float]]
    """kind of work -> quantity -> amount per token, in the phase prefill"""
    firing: dict[str, Any] | None
    """FiringStatistics.to_dict(), or None without spikes"""
    rasters: tuple[Raster, ...]
    energy: dict[str, dict[str, dict[str, Any]]]
    """phase -> profile -> EnergyEstimate.to_dict()"""
    state_elements: int
    """carried for one text, at any length, or after `state_tokens`"""
    key_value_elements_per_token: int
    """what a Transformer of the same layers and width would keep for every token of its context"""
    parameter_bits: int
    """width in which this run stores its weights"""
    tokens_per_s: dict[str, float]
    """phase -> measured on this host, by torch on its threads; says nothing of other hardware"""
    host: str
    family: str = ""
    """equal for models that differ in how spikes enter alone: a dense one is the twin of the spiking ones"""
    state_tokens: int | None = None
    """tokens of the context with which the state grows; None if it is as large at any length"""
    uncounted: tuple[dict[str, Any], ...] = ()
    context: tuple[ContextPoint, ...] = ()
    """what memory costs and buys by length, of this model and of those beside it; where that was measured"""
    notes: tuple[str, ...] = field(default=())
    """what else is to be known of the model, one sentence each: how far its training came, for instance"""
    wording: Wording = field(default=Wording())

    def __repr__(self) -> str:
        """One line: all of it is for figures and reports."""
        return (
            f"<Measurement of {self.name}: {self.tokens:,} tokens, {self.bits_per_byte:.4f} bits per byte, "
            f"{len(self.layers)} products>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: all that was measured."""
        values = asdict(self)
        del values["wording"]
        return values


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What was published, the same recipe on a model, and what it saves as built: ratios of dense to spiking."""

    per_projection_ratio: float
    total_ratio: float
    idealised_ratio: float
    as_built_ratio: float
    sentence: str


def per_token(counts: Counts, tokens: int) -> dict[str, float]:
    """Return the quantities that are not 0, divided by the tokens; maxima as they are.

    Raises:
        ValueError: fewer than one token.
    """
    if not tokens >= 1:
        raise ValueError(f"per_token needs at least 1 token, got {tokens}; was anything read in this phase?")
    values = counts.to_dict()
    return {
        name: value if name in MAXIMA else value / tokens for name, value in values.items() if value and name != "calls"
    }


def layer_ops(
    tally: Tally, phase: str, firing_rate: float | None, left_out: tuple[str, ...] = ()
) -> tuple[LayerOps, ...]:
    """Return the matrix products and convolutions of every module that has some, in order of execution.

    `left_out` are modules whose idealised figure is None, because the published arithmetic leaves them out.
    """
    tokens = tally.token_count(phase)
    rows = []
    for module in tally.modules():
        sites = {
            site: counts
            for site, counts in tally.select(phase=phase).items()
            if site.module == module and counts.dense_ops
        }
        if not sites:
            continue
        counts = sum(sites.values(), Counts())
        idealised = (
            None if firing_rate is None or module in left_out else idealised_ops(counts.dense_ops, firing_rate) / tokens
        )
        rows.append(
            LayerOps(
                module=module,
                dense_ops=counts.dense_ops / tokens,
                effective_macs=counts.effective_macs / tokens,
                effective_acs=counts.effective_acs / tokens,
                unit_acs=counts.unit_acs / tokens,
                idealised_acs=idealised,
                density=counts.density or 0.0,
                alphabet=counts.alphabet or "zero",
                fan_out=counts.fan_out,
            )
        )
    return tuple(rows)
