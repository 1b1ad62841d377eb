"""The one door to RWKV-7's WKV: checks, choice of backend, and the torch custom operator `spikegpt::wkv7`.

The equations are in `reference.wkv7`. Nothing is computed here.
"""

import warnings

import torch
from torch import Tensor

from ..backends import choose_backend, fast_kernels
from ..checks import check_heads
from ..gpu import HEAD_SIZES, wrong_head_size
from ..operators import custom_operator, declare_cost, new_like
from . import reference


def wkv7(
    receptance: Tensor,
    log_decay: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return (output, state): what `receptance` reads of a matrix of values by keys that each token edits.

    S_t = S_{t-1} diag(exp(log_decay_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T;  output_t = S_t r_t.

    Args:
        receptance, key, value, a, b: (B, T, H, N), H heads of N channels, one dtype: float32, bfloat16, float16, or
            float64 (reference only). In RWKV-7 a is minus the normalised key, b that key times the rate of learning.
        log_decay: (B, T, H, N), at most 0, of each channel of keys; kept in the dtype of the state.
        state: (B, H, N, N), rows are channels of values, columns of keys, carried in from the tokens before; None
            (zeros) at the start of a text. float32, or float64 with float64 keys.
        backend: on a GPU the kernel serves heads of HEAD_SIZES channels; others "auto" leaves to the reference.

    Returns:
        output (B, T, H, N) in the dtype of `key`; the state after the last token.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names what was found and wanted.
    """
    state = check_heads("wkv7", key, log_decay, state, receptance=receptance, value=value, a=a, b=b)
    chosen, N = choose_backend(backend, "wkv7", key), key.shape[-1]
    if chosen == "cupy" and N not in HEAD_SIZES and backend == "auto":
        message = f"{wrong_head_size('wkv7', N)}; using the slow plain-torch reference"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        chosen = "reference"
    implementation = reference.wkv7 if chosen == "reference" else wkv7_operator
    return implementation(receptance, log_decay.to(state.dtype), key, value, a, b, state)


@custom_operator("spikegpt::wkv7", mutates_args=())
def wkv7_operator(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """(output, state)."""
    return fast_kernels("wkv7", key).wkv7_forward(receptance, log_decay, key, value, a, b, state)


@wkv7_operator.register_fake
def _(receptance, log_decay, key, value, a, b, state):
    return new_like(key), new_like(state)


@custom_operator("spikegpt::wkv7_backward", mutates_args=())
def wkv7_backward_operator(
    grad_output: Tensor,
    grad_state: Tensor,
    receptance: Tensor,
    log_decay: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
) -> list[Tensor]:
    """Gradients of (receptance, log_decay, key, value, a, b, state)."""
    inputs = receptance, log_decay, key, value, a, b, state
    return list(fast_kernels("wkv7", key).wkv7_backward(grad_output, grad_state, *inputs))


@wkv7_backward_operator.register_fake
def _(grad_output, grad_state, *inputs):
    return list(map(new_like, inputs))


wkv7_operator.differentiate_by(wkv7_backward_operator)


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, ...]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters: `reference.wkv7` line by line.

    Of each element of the state, a decay and four products that are added: what is removed, removed along b, written,
    read.
    """
    key, state = args[2], args[6]
    numbers = key.numel()
    steps = numbers * key.shape[-1]
    return {
        "kind": "scan",
        "mul": 5 * steps,
        "add": 4 * steps - 2 * numbers,
        "exp": numbers,
        "activation_reads": 6 * numbers,
        "activation_writes": numbers,
        "state_elements": state[0].numel(),
        "state_reads": steps,
        "state_writes": steps,
    }


declare_cost(torch.ops.spikegpt.wkv7.default, _op_cost)
