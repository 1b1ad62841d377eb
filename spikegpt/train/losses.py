"""What a training step minimises: a list of terms, each with a name and a weight, built from the configuration once.

A new term is a class here and a line in `make_terms`. The order of the list is the order of the sum, and part of what
makes a resumed run end as the unbroken one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import TrainConfig
from ..model.network import EMBEDDING
from ..neuron import firing_rate
from .schedules import synop_budget

# of KL(teacher || model) in the teacher loss "both"; the rest is KL(model || teacher)
FORWARD_SHARE = 0.2
# share of the dense products below which a budget is small: its excess weighs more
SMALL_BUDGET = 0.2


class Reading(NamedTuple):
    """What the model, and its teacher, made of one batch."""

    step: int
    """optimizer steps done before this one"""
    cross_entropy: Tensor
    """scalar, nats per token"""
    logits: Tensor
    """(B, T, vocab_size)"""
    spikes: dict[str, Tensor]
    """emitting module -> (B, T, C)"""
    taught: Tensor | None = None
    """the teacher's logits (B, T, vocab_size), None without one"""
    features: Sequence[Tensor] = ()
    """the stream after each block (B, T, n_embd), if a teacher's is to be learned"""
    taught_features: Sequence[Tensor] = ()
    without_neurons: Tensor | None = None
    """cross-entropy of the model with its neurons left out, where that is the teacher (scalar)"""
    commitment_errors: Sequence[Tensor] = ()
    """of each layer of neurons that commits, where that is asked for (scalars)"""


class Term(Protocol):
    """One summand of the loss, logged by its name."""

    @property
    def name(self) -> str: ...

    def __call__(self, reading: Reading) -> Tensor:
        """Return what this term adds to the loss (scalar), its weight included."""
        ...


def make_terms(
    config: TrainConfig, synapses: dict[str, int], *, emits_spikes: bool, commits: bool = False
) -> list[Term]:
    """Return the terms that `config` asks for, in the order in which they are added up.

    Args:
        synapses: emitting module -> weights of the product that reads its spikes; empty where none does.
        emits_spikes: False for the dense twin, which has no rates to pull.
        commits: whether any of its neurons can, see `LIF.can_commit`.
    """
    rate, teaches_itself = config.firing_rate_target, config.self_teacher > 0 and emits_spikes
    is_taught = config.teacher is not None or teaches_itself
    terms: list[Term] = [CrossEntropy(1 - config.teacher_weight if is_taught else 1.0)]
    if is_taught:
        terms.append(Distillation(config.teacher_weight, config.teacher_loss))
        if config.teacher_features:
            terms.append(Features(config.teacher_features))
        if teaches_itself:
            terms.append(WithoutNeurons(config.self_teacher))
    if config.l2wrap:
        terms.append(L2Wrap(config.l2wrap))
    if rate is not None and emits_spikes:
        terms.append(FiringRate(config.firing_rate_weight, rate))
    if config.commitment and commits:
        terms.append(Commitment(config.commitment))
    if synapses and config.synop_budget:
        terms.append(SynopBudget(config, synapses))
    return terms


def add_up(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of the terms (scalar), the first plus the second, plus the third and so on."""
    first, *rest = terms.values()
    total = first
    for term in rest:
        total = total + term
    return total


@dataclass(frozen=True)
class CrossEntropy:
    """weight * cross-entropy of the text."""

    name: ClassVar[str] = "cross_entropy"
    weight: float

    def __call__(self, reading: Reading) -> Tensor:
        return self.weight * reading.cross_entropy


@dataclass(frozen=True)
class Distillation:
    """weight * divergence of the model's predictions from the teacher's, of the kind `teacher_loss`."""

    name: ClassVar[str] = "distillation"
    weight: float
    kind: str

    def __call__(self, reading: Reading) -> Tensor:
        assert reading.taught is not None, "a distillation without a teacher"
        return self.weight * distillation(reading.logits, reading.taught, self.kind)


@dataclass(frozen=True)
class Features:
    """weight * squared distance from the teacher's stream, mean over the blocks."""

    name: ClassVar[str] = "features"
    weight: float

    def __call__(self, reading: Reading) -> Tensor:
        pairs = zip(reading.features, reading.taught_features, strict=True)
        return self.weight * torch.stack([feature_distance(ours, theirs) for ours, theirs in pairs]).mean()


@dataclass(frozen=True)
class WithoutNeurons:
    """weight * cross-entropy of the model with its neurons left out, which teaches it.

    Source: in-place distillation, Yu and Huang 2019, arXiv 1903.05134.
    """

    name: ClassVar[str] = "without_neurons"
    weight: float

    def __call__(self, reading: Reading) -> Tensor:
        assert reading.without_neurons is not None, "the model was not read without its neurons"
        return self.weight * reading.without_neurons


@dataclass(frozen=True)
class Commitment:
    """weight * share of the currents' energy that spikes do not stand for, mean over layers of neurons."""

    name: ClassVar[str] = "commitment"
    weight: float

    def __call__(self, reading: Reading) -> Tensor:
        return self.weight * torch.stack(list(reading.commitment_errors)).mean()


@dataclass(frozen=True)
class L2Wrap:
    """RWKV's pull of the largest logit towards 0."""

    name: ClassVar[str] = "l2wrap"
    strength: float

    def __call__(self, reading: Reading) -> Tensor:
        return l2wrap(reading.logits, self.strength)


@dataclass(frozen=True)
class FiringRate:
    """weight * mean over the layers of neurons of (rate - target)^2. The binary embedding is not a layer of neurons."""

    name: ClassVar[str] = "firing_rate"
    weight: float
    target: float

    def __call__(self, reading: Reading) -> Tensor:
        rates = torch.stack([firing_rate(spike) for name, spike in reading.spikes.items() if name != EMBEDDING])
        return self.weight * (rates - self.target).square().mean()


@dataclass(frozen=True)
class SynopBudget:
    """weight * what the spikes cost above the budget of the step, as a share of the dense products."""

    name: ClassVar[str] = "synop_budget"
    config: TrainConfig
    synapses: dict[str, int]

    def __call__(self, reading: Reading) -> Tensor:
        excess = synop_share(reading.spikes, self.synapses) - synop_budget(reading.step, self.config)
        return synop_weight(self.config) * excess.clamp(min=0)


def l2wrap(logits: Tensor, strength: float) -> Tensor:
    """Return RWKV's L2Wrap as a loss term, strength/2 * mean(max logit squared): its gradient is the published one."""
    return strength / 2 * logits.float().amax(dim=-1).square().mean()


def synop_share(spikes: dict[str, Tensor], synapses: dict[str, int]) -> Tensor:
    """Return the share of the dense products' operations that spikes cost (scalar): rates weighted by synapses."""
    rates = torch.stack([firing_rate(spikes[name]) for name in synapses])
    return rates @ rates.new_tensor([count / sum(synapses.values()) for count in synapses.values()])


def synop_weight(config: TrainConfig) -> float:
    """Return what an excess over the budget costs: below a budget of a fifth it counts in proportion to the budget.

    At one weight for all, the few spikes that a small budget leaves are worth more than they cost: budgets of 0.05 and
    0.10 both ended at 0.12.
    """
    return config.synop_weight * max(1.0, SMALL_BUDGET / config.synop_budget)


def distillation(logits: Tensor, taught: Tensor, kind: str = "kl") -> Tensor:
    """Return how far predictions are from the teacher's, nats per token (scalar), of logits (..., vocab_size) of both.

    `kind` is one of `TrainConfig.teacher_loss`.

    Sources: Hinton, Vinyals and Dean 2015, at temperature 1 (kl); Wu et al. 2024, arXiv 2404.02657 (akl); shares of
    `both`: arXiv 2601.21503.
    """
    ours, theirs = (F.log_softmax(part.float().flatten(0, -2), dim=-1) for part in (logits, taught))
    if kind == "kl":
        return _kl(theirs, ours).mean()
    if kind == "reverse":
        return _kl(ours, theirs).mean()
    share = akl_share(ours.detach(), theirs) if kind == "akl" else FORWARD_SHARE
    return (share * _kl(theirs, ours) + (1 - share) * _kl(ours, theirs)).mean()


def _kl(of: Tensor, given: Tensor) -> Tensor:
    """KL(of || given) in nats (N,), of log-probabilities (N, vocab_size)."""
    return F.kl_div(given, of, log_target=True, reduction="none").sum(dim=-1)


def akl_share(ours: Tensor, theirs: Tensor, head: float = 0.5) -> Tensor:
    """Return the share of KL(teacher || model) in the adaptive KL of each token (N,), of log-probabilities (N, V).

    The share is that of the teacher's head in all gaps |p - q|: its likeliest tokens while their probabilities add up
    to at most `head`, and always the first. One half where there is no gap.
    """
    sorted_p, order = theirs.exp().sort(dim=-1, descending=True, stable=True)
    is_head = sorted_p.cumsum(dim=-1) <= head
    is_head[..., 0] = True
    gaps = (sorted_p - ours.exp().gather(-1, order)).abs()
    total = gaps.sum(dim=-1)
    return torch.where(total > 0, (gaps * is_head).sum(dim=-1) / total, 0.5)


def feature_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared difference (scalar) of two streams (B, T, C), each layer-normed without gain."""
    normed = [F.layer_norm(part.float(), part.shape[-1:]) for part in (ours, theirs)]
    return (normed[0] - normed[1]).square().mean()
