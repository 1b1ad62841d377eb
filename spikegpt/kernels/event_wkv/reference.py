"""The WKV of value spikes, defined in plain torch and written to be read: one loop over time, and without one.

The event is defined here: what a kernel skips must be visible in this file. Gradients come from torch's autograd; the
fast versions are tested against it.
"""

import torch
from torch import Tensor

from ..decay import decay_of, log_decay_of

# largest |key| and |time_first|, whose weights are plain exponentials: e^20 is 5e8, e^-20 2e-9
EVENT_KEY_LIMIT = 20.0


def event_wkv(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator), each state (B, C): WKV of value spikes.

    A value spike is an event, and only there the key counts: `event_weight`. A token whose value is silent weighs 1,
    adds nothing to the numerator, and its key is never read:

        weight_t    = exp(key_t) where value_t != 0, else 1
        output_t    = (numerator + exp(time_first) weight_t value_t) / (denominator + exp(time_first) weight_t)
        numerator   <- decay * numerator + weight_t value_t,    decay = exp(-exp(time_decay))
        denominator <- decay * denominator + weight_t

    so that n silent tokens leave decay^n * numerator and decay^n * denominator + (1 + decay + ... + decay^(n-1)).
    The gradient is the exact one with the events held fixed: a silent value hears what a spike of weight 1 would have
    done (a surrogate), a silent key hears nothing.
    """
    decay = decay_of(time_decay.to(numerator.dtype))
    first = torch.exp(time_first.to(numerator.dtype).clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT))
    outputs = []
    for k, v in zip(key.to(numerator.dtype).unbind(dim=1), value.to(numerator.dtype).unbind(dim=1), strict=True):
        weight = event_weight(k, v)
        outputs.append((numerator + first * weight * v) / (denominator + first * weight))
        numerator = decay * numerator + weight * v
        denominator = decay * denominator + weight
    return torch.stack(outputs, dim=1).to(key.dtype), numerator, denominator


def event_weight(key: Tensor, value: Tensor) -> Tensor:
    """Return exp(key), the key limited to +-EVENT_KEY_LIMIT, where `value` is a spike, and 1 where it is silent."""
    return torch.where(value != 0, torch.exp(key.clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT)), torch.ones_like(key))


def event_wkv_parallel(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor
) -> Tensor:
    """Return the output (B, T, C) of `event_wkv` without a recurrence: one (T, T) matrix of decays per channel."""
    steps = torch.arange(key.shape[1], device=key.device, dtype=numerator.dtype)
    log_decay = log_decay_of(time_decay.to(numerator.dtype))
    # token t sees token i < t decayed t - 1 - i times, and the state carried in t times
    elapsed = (steps.view(-1, 1) - 1 - steps).unsqueeze(-1)
    past = torch.where(elapsed >= 0, torch.exp(log_decay * elapsed.clamp(min=0)), torch.zeros_like(elapsed))
    carried = torch.exp(log_decay * steps.unsqueeze(-1))
    weight = event_weight(key, value).to(numerator.dtype)
    present = torch.exp(time_first.to(numerator.dtype).clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT)) * weight
    above = torch.einsum("tic,bic->btc", past, weight * value) + carried * numerator.unsqueeze(1) + present * value
    below = torch.einsum("tic,bic->btc", past, weight) + carried * denominator.unsqueeze(1) + present
    return (above / below).to(key.dtype)
