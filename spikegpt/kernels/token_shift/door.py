"""The one door to the token shift: checks, choice of backend, the torch custom operator `spikegpt::token_shift`.

The equation is in `reference.token_shift`. Nothing is computed here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import choose_training_backend, fast_kernels
from ..operators import custom_operator, declare_cost, new_like
from . import reference


def token_shift(
    x: Tensor,
    previous: Tensor | None,
    shares: Sequence[Tensor],
    backend: str = "auto",
    *,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Return share * x + (1 - share) * (x one token earlier) for each of `shares`, each (B, T, C).

    Args:
        x: (B, T, C).
        previous: (B, C), what the first token sees as the one before it; zeros if None.
        shares: each (C,) or (1, 1, C): how much of its own a channel keeps.
        backend: "auto" takes torch's own operators where no gradient is asked for, and on a GPU.
        dtype: of what is returned; None for that of `x`.

    Raises:
        ValueError: a shape does not fit; the message names what was found and wanted.
    """
    check_shift(x, previous, shares)
    dtype = dtype or x.dtype
    inputs = (x, *shares) if previous is None else (x, previous, *shares)
    if choose_training_backend(backend, "token_shift", *inputs) == "reference":
        return [mix.to(dtype) for mix in reference.token_shift(x, previous, list(shares))]
    return token_shift_operator(x, previous, [share.flatten() for share in shares], dtype)


def check_shift(x: Tensor, previous: Tensor | None, shares: Sequence[Tensor]) -> None:
    if x.dim() != 3 or 0 in x.shape:
        raise ValueError(f"token_shift: x must be (B, T, C) with no empty side, got {tuple(x.shape)}")
    B, _, C = x.shape
    if previous is not None and previous.shape != (B, C):
        raise ValueError(f"token_shift: previous has shape {tuple(previous.shape)}, want {(B, C)}")
    for share in shares:
        if share.shape not in ((C,), (1, 1, C)):
            raise ValueError(f"token_shift: a share has shape {tuple(share.shape)}, want ({C},) or (1, 1, {C})")


@custom_operator(
    "spikegpt::token_shift",
    mutates_args=(),
    schema="(Tensor x, Tensor? previous, Tensor[] shares, ScalarType dtype) -> Tensor[]",
)
def token_shift_operator(x, previous, shares, dtype):
    """The mixes in `dtype`. Keeps only its inputs for the backward pass."""
    return fast_kernels("token_shift", x).token_shift_forward(x, previous, shares, dtype)


@token_shift_operator.register_fake
def _(x, previous, shares, dtype):
    return [torch.empty(x.shape, dtype=dtype, device=x.device) for _ in shares]


@custom_operator(
    "spikegpt::token_shift_backward",
    mutates_args=(),
    schema="(Tensor[] grads, Tensor x, Tensor? previous, Tensor[] shares) -> (Tensor, Tensor, Tensor)",
)
def token_shift_backward_operator(grads, x, previous, shares):
    """Gradients of (x, previous (B, C), shares (shares, C))."""
    return fast_kernels("token_shift", x).token_shift_backward(grads, x, previous, shares)


@token_shift_backward_operator.register_fake
def _(grads, x, previous, shares):
    B, _, C = x.shape
    return new_like(x), x.new_empty((B, C)), x.new_empty((len(shares), C), dtype=torch.float32)


def _save_for_backward(ctx, inputs, output):
    x, previous, shares, ctx.dtype = inputs
    ctx.save_for_backward(x, previous, *shares)


def _backward(ctx, grads):
    x, previous, *shares = ctx.saved_tensors
    grads = [torch.zeros(x.shape, dtype=ctx.dtype) if grad is None else grad for grad in grads]
    grad_x, grad_previous, grad_shares = token_shift_backward_operator(grads, x, previous, shares)
    each = [grad.to(share.dtype) for grad, share in zip(grad_shares, shares, strict=True)]
    return grad_x, None if previous is None else grad_previous, each, None


token_shift_operator.register_autograd(_backward, setup_context=_save_for_backward)


def token_shift_cost(args: tuple, kwargs: dict, output: list[Tensor]) -> dict[str, int | str]:
    """What `reference.token_shift` computes, for dispatch-mode counters; the state is its caller's to declare."""
    steps, moved = sum(mix.numel() for mix in output), args[0].numel()
    weights = sum(share.numel() for share in args[2])
    return {
        "kind": "elementwise",
        "add": 2 * steps,
        "mul": steps,
        "weights_once": weights,
        "weights_per_event": steps,
        "weights_dense": steps,
        "activation_reads": 2 * steps + moved,
        "activation_writes": steps + moved,
    }


declare_cost(torch.ops.spikegpt.token_shift.default, token_shift_cost)
