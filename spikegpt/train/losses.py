"""What a training step minimises: cross-entropy, and what a configuration adds to it; and the schedules of budget and
annealing."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import TrainConfig
from ..model.network import l2wrap

# share of the dense products below which a budget is small: its excess weighs more
SMALL_BUDGET = 0.2


def training_loss(
    cross_entropy: Tensor,
    logits: Tensor,
    spikes: dict[str, Tensor],
    *,
    taught: Tensor | None,
    synapses: dict[str, int],
    step: int,
    config: TrainConfig,
) -> Tensor:
    """Return the loss of one batch (scalar), in nats per token and what `config` adds.

    Args:
        logits: (B, T, vocab_size).
        spikes: emitting module -> (B, T, C).
        taught: the teacher's logits (B, T, vocab_size), None without one.
        synapses: emitting module -> weights of the product that reads its spikes.
    """
    loss = cross_entropy
    if taught is not None:
        loss = (1 - config.teacher_weight) * cross_entropy + config.teacher_weight * distillation(logits, taught)
    if config.l2wrap:
        loss = loss + l2wrap(logits, config.l2wrap)
    if config.firing_rate_target is not None and len(spikes) > 1:
        rates = torch.stack([firing_rate(spike) for name, spike in spikes.items() if name != "emb"])
        loss = loss + config.firing_rate_weight * (rates - config.firing_rate_target).square().mean()
    if synapses and config.synop_budget:
        excess = synop_share(spikes, synapses) - synop_budget(step, config)
        loss = loss + synop_weight(config) * excess.clamp(min=0)
    return loss


def firing_rate(spikes: Tensor) -> Tensor:
    """Return the share of neurons that fired (scalar); its gradient pushes single spikes, straight through, towards
    silence."""
    return spikes.float().abs().clamp(max=1).mean()


def synop_share(spikes: dict[str, Tensor], synapses: dict[str, int]) -> Tensor:
    """Return the share of the dense products' operations that these spikes cost: firing rates weighted by synapses
    (scalar)."""
    total = sum(synapses.values())
    return torch.stack([firing_rate(spikes[name]) * (count / total) for name, count in synapses.items()]).sum()


def synop_budget(step: int, config: TrainConfig) -> float:
    """Return the budget of a step: it shrinks from 1 to synop_budget, for a sudden one drives the firing far below
    itself."""
    left = 1 - min(step / (config.synop_warmup * config.steps), 1.0) if config.synop_warmup else 0.0
    return config.synop_budget + (1 - config.synop_budget) * left


def spike_share(step: int, config: TrainConfig) -> float:
    """Return the probability with which a neuron spikes at a step: it grows from 0 to 1 over `anneal` of the steps."""
    return min(step / (config.anneal * config.steps), 1.0) if config.anneal else 1.0


def synop_weight(config: TrainConfig) -> float:
    """Return what an excess over the budget costs: below a budget of a fifth it counts in proportion to the budget.

    At one weight for all, the few spikes that a small budget leaves are worth more than they cost: budgets of 0.05 and
    0.10 both ended at 0.12.
    """
    return config.synop_weight * max(1.0, SMALL_BUDGET / config.synop_budget)


def distillation(logits: Tensor, taught: Tensor) -> Tensor:
    """Return KL(teacher || model) in nats per token (scalar), of logits (B, T, vocab_size) of both.

    Source: Hinton, Vinyals and Dean 2015, at temperature 1.
    """
    ours, theirs = (F.log_softmax(part.float().flatten(0, 1), dim=-1) for part in (logits, taught))
    return F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
