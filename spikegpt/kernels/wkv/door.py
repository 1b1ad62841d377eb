"""The one door to RWKV-4's WKV: checks, choice of backend, and the torch custom operator `spikegpt::wkv`.

The equations are in `reference.wkv`. Nothing is computed here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import choose_backend, fast_kernels
from ..checks import check_wkv_inputs
from ..operators import custom_operator, declare_cost, new_like
from ..pointwise.door import gate
from . import reference


class WKVState(NamedTuple):
    """Running sums of the WKV, each (B, C): the true sums are `numerator` and `denominator` times exp(max_exponent)."""

    numerator: Tensor
    denominator: Tensor
    max_exponent: Tensor

    @classmethod
    def empty(cls, batch: int, channels: int, *, dtype=torch.float32, device="cpu") -> "WKVState":
        """Return the state before the first token."""
        zeros = torch.zeros(batch, channels, dtype=dtype, device=device)
        return cls(zeros, zeros.clone(), torch.full_like(zeros, reference.EMPTY_EXPONENT))


def wkv(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    state: WKVState | None = None,
    backend: str = "auto",
    *,
    receptance: Tensor | None = None,
) -> tuple[Tensor, WKVState]:
    """Return (output, state): for every channel the decaying, exp(key)-weighted mean of the values up to each token.

    Args:
        time_decay: (C,) raw parameter; the decay per step is exp(-exp(time_decay)).
        time_first: (C,) added to the key of the present token.
        key, value: (B, T, C), one dtype: float32, bfloat16, float16, or float64 (reference only).
        state: carried in from the tokens before; None at the start of a text. float32, or float64 with float64 keys.
        receptance: like `key`: the output is multiplied by sigmoid(receptance), which CUDA does in the same kernel.

    Returns:
        output (B, T, C) in the dtype of `key`; the state after the last token.
        No gradient passes through `state.max_exponent`, which is only a scale (see `reference.wkv`).

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names what was found and wanted.
    """
    if state is not None:
        state = WKVState(*state)
    time_decay, time_first, state = check_wkv_inputs("wkv", WKVState.empty, time_decay, time_first, key, value, state)
    if receptance is not None and (receptance.shape, receptance.dtype, receptance.device) != (
        key.shape,
        key.dtype,
        key.device,
    ):
        found = f"wkv: receptance is {receptance.dtype} {tuple(receptance.shape)} on {receptance.device}"
        raise ValueError(f"{found}, key is {key.dtype} {tuple(key.shape)} on {key.device}; they must agree")
    chosen = choose_backend(backend, "wkv", key)
    if chosen == "cupy":
        output, *last = wkv_operator(time_decay, time_first, key, value, *state, receptance)
        return output, WKVState(*last)
    implementation = reference.wkv if chosen == "reference" else wkv_operator
    output, *last = implementation(time_decay, time_first, key, value, *state)
    return output if receptance is None else gate(receptance, output), WKVState(*last)


@custom_operator("spikegpt::wkv", mutates_args=())
def wkv_operator(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    max_exponent: Tensor,
    receptance: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output, numerator, denominator, max_exponent); with a receptance, which only CUDA takes, the gated output."""
    inputs = time_decay, time_first, key, value, numerator, denominator, max_exponent
    return fast_kernels("wkv", key).wkv_forward(*inputs, **_gate(receptance))


def _gate(receptance: Tensor | None) -> dict[str, Tensor]:
    return {} if receptance is None else {"receptance": receptance}


@wkv_operator.register_fake
def _(time_decay, time_first, key, value, numerator, denominator, max_exponent, receptance=None):
    return tuple(map(new_like, (key, numerator, denominator, max_exponent)))


@custom_operator("spikegpt::wkv_backward", mutates_args=())
def wkv_backward_operator(
    grad_output: Tensor,
    grad_numerator: Tensor,
    grad_denominator: Tensor,
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    max_exponent: Tensor,
    receptance: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of (time_decay, time_first, key, value, numerator, denominator) and, if it is given, of receptance."""
    grads = grad_output, grad_numerator, grad_denominator
    inputs = time_decay, time_first, key, value, numerator, denominator, max_exponent
    return list(fast_kernels("wkv", key).wkv_backward(*grads, *inputs, **_gate(receptance)))


@wkv_backward_operator.register_fake
def _(
    grad_output,
    grad_numerator,
    grad_denominator,
    time_decay,
    time_first,
    key,
    value,
    numerator,
    denominator,
    max_exponent,
    receptance=None,
):
    inputs = time_decay, time_first, key, value, numerator, denominator, *_gate(receptance).values()
    return list(map(new_like, inputs))


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.mark_non_differentiable(output[3])


def _backward(ctx, grad_output, grad_numerator, grad_denominator, _grad_max_exponent):
    *grads, last = wkv_backward_operator(grad_output, grad_numerator, grad_denominator, *ctx.saved_tensors)
    # none for max_exponent, which stands before receptance
    return (*grads, last, None, None) if ctx.saved_tensors[7] is None else (*grads, None, last)


wkv_operator.register_autograd(_backward, setup_context=_save_for_backward)


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, ...]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters: `reference.wkv` line by line, exp(time_decay) prepared once.

    A gate in the kernel counts what a sigmoid and a product count outside: both read their inputs and write their
    result.
    """
    time_decay, _, key = args[:3]
    steps = key.numel()
    gated = steps if args[7:] and args[7] is not None else 0
    return {
        "kind": "scan",
        "add": 10 * steps,
        "mul": 6 * steps + gated,
        "div": steps,
        "exp": 4 * steps,
        "sigmoid": gated,
        "compare": 2 * steps,
        "weights_once": 2 * time_decay.numel(),
        "weights_per_event": 2 * steps,
        "weights_dense": 2 * steps,
        "activation_reads": 2 * steps + 3 * gated,
        "activation_writes": steps + 2 * gated,
        "state_elements": 3 * time_decay.numel(),
        "state_reads": 3 * steps,
        "state_writes": 3 * steps,
    }


declare_cost(torch.ops.spikegpt.wkv.default, _op_cost)
