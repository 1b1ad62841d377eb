"""The one door to RWKV-7's WKV by events: checks, choice of backend, the custom operator `spikegpt::event_wkv7`.

The equations are in `reference.event_wkv7`. Nothing is computed here.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import choose_backend, fast_kernels
from ..checks import check_heads
from ..operators import count_events, custom_operator, declare_cost, new_like
from ..wkv7.door import wkv7
from . import reference
from .gpu import MOST_CHANNELS, wrong_head_size


class EventWKV7State(NamedTuple):
    """The matrices of the WKV, S = matrix diag(exp(waiting)): rows are channels of values, columns of keys."""

    matrix: Tensor
    """(B, H, N, N)"""
    waiting: Tensor
    """(B, H, N), at most 0: logarithm of the decay that each column has yet to undergo"""


def event_wkv7(
    receptance: Tensor,
    log_decay: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    state: EventWKV7State | None = None,
    backend: str = "auto",
) -> tuple[Tensor, EventWKV7State]:
    """Return what `wkv7` does, its matrices read where the receptance is not 0, edited where key, a or b are not.

    In training, where gradients are asked for, it is `wkv7`: silent receptances and keys have gradients too.

    Args:
        receptance, log_decay, key, value, a, b: as of `wkv7`.
        backend: on a GPU the kernel serves heads of up to MOST_CHANNELS channels; larger ones "auto" leaves to the
            reference.
        state: carried in from the tokens before; None (zeros) at the start of a text. float32, or float64 with float64
            keys.

    Returns:
        output (B, T, H, N) in the dtype of `key`; the state after the last token.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names what was found and wanted.
    """
    matrix, waiting = state or (None, None)
    matrix = check_heads("event_wkv7", key, log_decay, matrix, receptance=receptance, value=value, a=a, b=b)
    if waiting is None:
        waiting = matrix.new_zeros(matrix.shape[:-1])
    if (waiting.shape, waiting.dtype, waiting.device) != (matrix.shape[:-1], matrix.dtype, matrix.device):
        found = f"event_wkv7: waiting is {waiting.dtype} {tuple(waiting.shape)} on {waiting.device}"
        raise ValueError(f"{found}, want {matrix.dtype} {tuple(matrix.shape[:-1])} on {matrix.device}")
    inputs = receptance, log_decay, key, value, a, b
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, matrix, waiting)):
        output, matrix = wkv7(*inputs, matrix * torch.exp(waiting).unsqueeze(-2), backend)
        return output, EventWKV7State(matrix, torch.zeros_like(waiting))
    chosen, N = choose_backend(backend, "event_wkv7", key), key.shape[-1]
    if chosen == "cupy" and N > MOST_CHANNELS and backend == "auto":
        warnings.warn(f"{wrong_head_size(N)}; using the slow plain-torch reference", RuntimeWarning, stacklevel=2)
        chosen = "reference"
    implementation = reference.event_wkv7 if chosen == "reference" else event_wkv7_operator
    output, *last = implementation(receptance, log_decay.to(matrix.dtype), key, value, a, b, matrix, waiting)
    return output, EventWKV7State(*last)


@custom_operator("spikegpt::event_wkv7", mutates_args=())
def event_wkv7_operator(
    receptance: Tensor,
    log_decay: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    matrix: Tensor,
    waiting: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, matrix, waiting); without gradients."""
    return fast_kernels("event_wkv7", key).event_wkv7_forward(receptance, log_decay, key, value, a, b, matrix, waiting)


@event_wkv7_operator.register_fake
def _(receptance, log_decay, key, value, a, b, matrix, waiting):
    return tuple(map(new_like, (key, matrix, waiting)))


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, ...]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters: `reference.event_wkv7` line by line, N channels of a head.

        is there an event: r, k, a, b != 0                  4 compare per channel
        waiting + log_decay                                 1 add per channel
        removed = sum of column * a exp(waiting)            at a != 0: 1 exp, N + 1 mul, N add
        column exp(waiting) + removed b + value k           at an event of keys: 1 exp, 3 N mul, 2 N add
        output = sum of column * r exp(waiting)             at r != 0: 1 exp, N + 1 mul, N add

    A column is read where a or r are not 0, and read and written at an event of keys; what waits, at every token.
    """
    receptance, _, key, _, a, b, matrix, waiting = args
    channels, N = key.numel(), key.shape[-1]
    reads, removals = count_events(receptance)[0], count_events(a)[0]
    edits = int(((key != 0) | (a != 0) | (b != 0)).sum())
    return {
        "kind": "scan",
        "mul": N * (reads + removals + 3 * edits) + reads + removals,
        "add": N * (reads + removals + 2 * edits) + channels,
        "exp": reads + removals + edits,
        "compare": 4 * channels,
        "activation_reads": 6 * channels,
        "activation_writes": channels,
        "state_elements": matrix[0].numel() + waiting[0].numel(),
        "state_reads": N * (reads + edits) + channels,
        "state_writes": N * edits + channels,
    }


declare_cost(torch.ops.spikegpt.event_wkv7.default, _op_cost)
