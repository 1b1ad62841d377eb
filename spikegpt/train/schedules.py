"""What changes with the step: the learning rate, the budget of synaptic operations, the share of neurons that spike."""

import math

from ..config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of optimizer step `step` (from 0): linear warm-up, then `config.schedule` down to lr_final."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "wsd":
        decaying = max(config.decay_share * config.steps, 1)
        left = min((config.steps - step) / decaying, 1.0)
    else:
        progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        left = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.lr_final + (config.lr - config.lr_final) * left


def synop_budget(step: int, config: TrainConfig) -> float:
    """Return the budget of a step: it shrinks from 1 to synop_budget, as a sudden one drives firing far below it."""
    left = 1 - min(step / (config.synop_warmup * config.steps), 1.0) if config.synop_warmup else 0.0
    return config.synop_budget + (1 - config.synop_budget) * left


def spike_share(step: int, config: TrainConfig) -> float:
    """Return the probability with which a neuron spikes at a step: it grows from 0 to 1 over `anneal` of the steps."""
    return min(step / (config.anneal * config.steps), 1.0) if config.anneal else 1.0
