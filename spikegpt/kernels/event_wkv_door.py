"""The one door to the WKV of value spikes: checks, choice of backend, and the torch custom operator `spikegpt::event_wkv`.

The equations are in `reference.event_wkv`. Nothing is computed here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .backends import choose_backend


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
    if key.dim() != 3 or 0 in key.shape:
        raise ValueError(f"event_wkv: key must be (B, T, C) with no empty side, got {tuple(key.shape)}")
    if value.shape != key.shape or value.dtype != key.dtype:
        raise ValueError(f"event_wkv: value is {value.dtype} {tuple(value.shape)}, key is {key.dtype} {tuple(key.shape)}; they must agree")
    if not key.dtype.is_floating_point:
        raise ValueError(f"event_wkv: key must be a floating-point tensor, got {key.dtype}")
    B, _, C = key.shape
    for name, parameter in (("time_decay", time_decay), ("time_first", time_first)):
        if parameter.shape != (C,):
            raise ValueError(f"event_wkv: key has {C} channels, {name} has shape {tuple(parameter.shape)}; want ({C},)")
    state_dtype = torch.float64 if key.dtype == torch.float64 else torch.float32
    if state is None:
        state = EventWKVState.empty(B, C, dtype=state_dtype, device=key.device)
    for name, part in zip(EventWKVState._fields, state, strict=True):
        if part.shape != (B, C) or part.dtype != state_dtype:
            found = f"event_wkv: state.{name} is {part.dtype} {tuple(part.shape)}"
            raise ValueError(f"{found}, want {state_dtype} {(B, C)} for {key.dtype} keys")
    devices = {tensor.device for tensor in (time_decay, time_first, key, value, *state)}
    if len(devices) > 1:
        raise ValueError(f"event_wkv: tensors are on {sorted(map(str, devices))}; move them to one device")
    time_decay, time_first = time_decay.to(state_dtype), time_first.to(state_dtype)
    implementation = reference.event_wkv if choose_backend(backend, "event_wkv", key) == "reference" else event_wkv_operator
    output, *state = implementation(time_decay, time_first, key, value, *state)
    return output, EventWKVState(*state)


@torch.library.custom_op("spikegpt::event_wkv", mutates_args=())
def event_wkv_operator(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, numerator, denominator)."""
    from . import numba_event_wkv

    return numba_event_wkv.event_wkv_forward(time_decay, time_first, key, value, numerator, denominator)


@event_wkv_operator.register_fake
def _(time_decay, time_first, key, value, numerator, denominator):
    # contiguous whatever the inputs are: the kernel fills new arrays
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (key, numerator, denominator))


@torch.library.custom_op("spikegpt::event_wkv_backward", mutates_args=())
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
    from . import numba_event_wkv

    return numba_event_wkv.event_wkv_backward(
        grad_output, grad_numerator, grad_denominator, time_decay, time_first, key, value, numerator, denominator
    )


@event_wkv_backward_operator.register_fake
def _(grad_output, grad_numerator, grad_denominator, *inputs):
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs)


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_output, grad_numerator, grad_denominator):
    return event_wkv_backward_operator(grad_output, grad_numerator, grad_denominator, *ctx.saved_tensors)


event_wkv_operator.register_autograd(_backward, setup_context=_save_for_backward)


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, ...]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters: `reference.event_wkv` line by line, decay and first prepared once.

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
    steps, events = key.numel(), int(value.count_nonzero())
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


torch.ops.spikegpt.event_wkv.default.op_cost = _op_cost
