"""The one door to the WKV of RWKV-5 and -6: checks, choice of backend, and the custom operator `spikegpt::wkv6`.

The equations are in `reference.wkv6`. Nothing is computed here.
"""

import warnings

import torch
from torch import Tensor

from ..backends import choose_backend, fast_kernels
from ..checks import check_heads
from ..gpu import HEAD_SIZES, wrong_head_size
from ..operators import custom_operator, declare_cost, new_like
from . import reference


def wkv6(
    receptance: Tensor,
    log_decay: Tensor,
    key: Tensor,
    value: Tensor,
    time_first: Tensor,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return (output, state): what `receptance` reads of a matrix of decaying values by keys, and of the token itself.

    output_t = (S_{t-1} + diag(time_first) k_t v_t^T)^T r_t;  S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T.

    Args:
        receptance, key, value: (B, T, H, N), H heads of N channels, one dtype: float32, bfloat16, float16, or float64
            (reference only).
        log_decay: (B, T, H, N), at most 0 and as far below as one likes, of each channel of keys; kept in the dtype of
            the state. RWKV-5's is of no token: a view expanded over the tokens.
        time_first: (H, N), what the token's own key is multiplied by.
        state: (B, H, N, N), rows are channels of keys, columns of values, carried in from the tokens before; None
            (zeros) at the start of a text. float32, or float64 with float64 keys.
        backend: on a GPU the kernel serves heads of HEAD_SIZES channels; others "auto" leaves to the reference.

    Returns:
        output (B, T, H, N) in the dtype of `key`; the state after the last token.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names what was found and wanted.
    """
    state = check_heads("wkv6", key, log_decay, state, receptance=receptance, value=value)
    if time_first.shape != key.shape[2:] or time_first.device != key.device or not time_first.is_floating_point():
        raise ValueError(
            f"wkv6: time_first is {time_first.dtype} {tuple(time_first.shape)} on {time_first.device}, want floating "
            f"point {tuple(key.shape[2:])} on {key.device}"
        )
    chosen, N = choose_backend(backend, "wkv6", key), key.shape[-1]
    if chosen == "cupy" and N not in HEAD_SIZES and backend == "auto":
        message = f"{wrong_head_size('wkv6', N)}; using the slow plain-torch reference"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        chosen = "reference"
    implementation = reference.wkv6 if chosen == "reference" else wkv6_operator
    return implementation(receptance, log_decay.to(state.dtype), key, value, time_first.to(state.dtype), state)


@custom_operator("spikegpt::wkv6", mutates_args=())
def wkv6_operator(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, time_first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """(output, state)."""
    return fast_kernels("wkv6", key).wkv6_forward(receptance, log_decay, key, value, time_first, state)


@wkv6_operator.register_fake
def _(receptance, log_decay, key, value, time_first, state):
    return new_like(key), new_like(state)


@custom_operator("spikegpt::wkv6_backward", mutates_args=())
def wkv6_backward_operator(
    grad_output: Tensor,
    grad_state: Tensor,
    receptance: Tensor,
    log_decay: Tensor,
    key: Tensor,
    value: Tensor,
    time_first: Tensor,
    state: Tensor,
) -> list[Tensor]:
    """Gradients of (receptance, log_decay, key, value, time_first, state)."""
    inputs = receptance, log_decay, key, value, time_first, state
    return list(fast_kernels("wkv6", key).wkv6_backward(grad_output, grad_state, *inputs))


@wkv6_backward_operator.register_fake
def _(grad_output, grad_state, *inputs):
    return list(map(new_like, inputs))


wkv6_operator.differentiate_by(wkv6_backward_operator)


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, ...]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters: `reference.wkv6` line by line.

    Of each element of the state, a decay and two products: read, written. A decay that is the same at every token is
    made once.
    """
    log_decay, key, state = args[1], args[2], args[5]
    numbers = key.numel()
    steps = numbers * key.shape[-1]
    heads = numbers // key.shape[-1]
    decays = key.shape[2] * key.shape[3] if log_decay.stride(1) == 0 else numbers
    return {
        "kind": "scan",
        "mul": 3 * steps + 3 * numbers,
        # N - 1 of the sum of N, twice; the bonus; what is written
        "add": 2 * steps + numbers - heads,
        "exp": decays,
        "activation_reads": 3 * numbers + decays,
        "activation_writes": numbers,
        "state_elements": state[0].numel(),
        "state_reads": steps,
        "state_writes": steps,
    }


declare_cost(torch.ops.spikegpt.wkv6.default, _op_cost)
