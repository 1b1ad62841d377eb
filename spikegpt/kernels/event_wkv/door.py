"""The one door to the WKV of value spikes: checks, choice of backend, the torch custom operator `spikegpt::event_wkv`.

The equations are in `reference.event_wkv`. Nothing is computed here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import choose_backend, fast_kernels
from ..checks import check_wkv_inputs
from ..operators import count_events, custom_operator, declare_cost, new_like
from . import reference


class EventWKVState(NamedTuple):
    """Running sums of the event-driven WKV, each (B, C): of weight * value, and of the weights."""

    numerator: Tensor
    denominator: Tensor

    @classmethod
    def empty(cls, batch: int, channels: int, *, dtype=torch.float32, device="cpu") -> "EventWKVState":
        """Return the state before the first token."""
        zeros = torch.zeros(batch, channels, dtype=dtype, device=device)
        return cls(zeros, zeros.clone())


def event_wkv(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    state: EventWKVState | None = None,
    backend: str = "auto",
) -> tuple[Tensor, EventWKVState]:
    """Return (output, state): for every channel the decaying, weighted mean of the values up to each token.

    A value that is not 0 is an event and weighs exp(key); a silent token weighs 1, and its key is never read.

    Args:
        time_decay: (C,) raw parameter; the decay per step is exp(-exp(time_decay)).
        time_first: (C,) the weight of the present token is multiplied by exp(time_first); limited to +-EVENT_KEY_LIMIT.
        key: (B, T, C) real, limited to +-EVENT_KEY_LIMIT: float32, bfloat16, float16, or float64 (reference only).
        value: (B, T, C) spikes, in the dtype of `key`: binary, signed or integer; any other number is an event too.
        state: carried in from the tokens before; None at the start of a text. float32, or float64 with float64 keys.
            A denominator is a sum of weights, so it is never negative.

    Returns:
        output (B, T, C) in the dtype of `key`; the state after the last token.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names what was found and wanted.
    """
    if state is not None:
        state = EventWKVState(*state)
    time_decay, time_first, state = check_wkv_inputs(
        "event_wkv", EventWKVState.empty, time_decay, time_first, key, value, state
    )
    chosen = choose_backend(backend, "event_wkv", key)
    implementation = reference.event_wkv if chosen == "reference" else event_wkv_operator
    output, *last = implementation(time_decay, time_first, key, value, *state)
    return output, EventWKVState(*last)


@custom_operator("spikegpt::event_wkv", mutates_args=())
def event_wkv_operator(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, numerator, denominator)."""
    return fast_kernels("event_wkv", key).event_wkv_forward(time_decay, time_first, key, value, numerator, denominator)


@event_wkv_operator.register_fake
def _(time_decay, time_first, key, value, numerator, denominator):
    return tuple(map(new_like, (key, numerator, denominator)))


@custom_operator("spikegpt::event_wkv_backward", mutates_args=())
def event_wkv_backward_operator(
    grad_output: Tensor,
    grad_numerator: Tensor,
    grad_denominator: Tensor,
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    numerator: Tensor,
    denominator: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (time_decay, time_first, key, value, numerator, denominator)."""
    return fast_kernels("event_wkv", key).event_wkv_backward(
        grad_output, grad_numerator, grad_denominator, time_decay, time_first, key, value, numerator, denominator
    )


@event_wkv_backward_operator.register_fake
def _(grad_output, grad_numerator, grad_denominator, *inputs):
    return tuple(map(new_like, inputs))


event_wkv_operator.differentiate_by(event_wkv_backward_operator)


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, ...]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters: `reference.event_wkv` line by line.

    Decay and first are prepared once.

                                                                              at an event          at a silent token
        is there an event: value != 0                                         1 compare            1 compare
        weight = exp(key), the key limited on both sides; silent: 1           2 compare, 1 exp     nothing
        present = first * weight; silent: first itself                        1 mul                nothing
        output = (numerator + present * value) / (denominator + present)      1 mul, 2 add, 1 div  1 add, 1 div
        numerator = decay * numerator + weight * value                        2 mul, 1 add         1 mul
        denominator = decay * denominator + weight                            1 mul, 1 add         1 mul, 1 add

    Every value is read, of the keys only those of events.
    """
    time_decay, _, key, value = args[:4]
    steps, events = key.numel(), count_events(value)[0]
    silent = steps - events
    return {
        "kind": "scan",
        "add": 4 * events + 2 * silent,
        "mul": 5 * events + 2 * silent,
        "div": steps,
        "exp": events,
        "compare": steps + 2 * events,
        "weights_once": 2 * time_decay.numel(),
        "weights_per_event": 2 * steps,
        "weights_dense": 2 * steps,
        "activation_reads": steps + events,
        "activation_writes": steps,
        "state_elements": 2 * time_decay.numel(),
        "state_reads": 2 * steps,
        "state_writes": 2 * steps,
    }


declare_cost(torch.ops.spikegpt.event_wkv.default, _op_cost)
