"""The one door to the integer LIF neuron: checks, choice of backend, and the torch custom operator
`spikegpt::integer_lif`.

The equations are in `reference.integer_lif_step`. Nothing is computed here.
"""

import math

import torch
from torch import Tensor

from .. import reference
from ..backends import choose_backend, fast_kernels

MOST_LEVELS = 127  # a signed byte holds every count, and so does each floating-point dtype, exactly


def integer_lif(
    current: Tensor,
    potential: Tensor | None = None,
    *,
    membrane_decay: float | Tensor = 0.0,
    threshold: float | Tensor = 1.0,
    levels: int = 1,
    signed: bool = False,
    reset: str = "subtract",
    decay_input: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return (spikes, final membrane potential) of neurons that may fire several times within one token, over a
    sequence.

    Args:
        current: (B, T, C) input current; float32, bfloat16, float16, or float64 (reference only).
        potential: (B, C) membrane potential carried in; zeros (at rest) if None. float32, or float64 with a float64
            current.
        membrane_decay: fraction of the potential kept per step, 1 - 1/tau; a number in [0, 1] or a (C,) tensor, which
            may learn. All zeros make the neuron memoryless.
        threshold: potential that one spike stands for; a positive number or a (C,) tensor, which may learn. The values
            of a tensor are not looked at: keep them positive.
        levels: most spikes per token, 1 to 127.
        signed: let a negative potential fire negative spikes (ON/OFF pairs).
        reset: "subtract" takes `threshold` off the potential for each spike, "zero" puts it at 0. No gradient flows
            through it.
        decay_input: multiply the current by 1 - membrane_decay.

    Returns:
        spikes (B, T, C), whole numbers from -levels (0 unless signed) to levels in the dtype of `current`;
        potential (B, C) after the last reset.

    Raises:
        ValueError: a shape, dtype, device or option does not fit; the message names what was found and wanted.
    """
    state_dtype = torch.float64 if current.dtype == torch.float64 else torch.float32
    _check_options(membrane_decay, threshold, levels, reset, decay_input)
    if current.dim() != 3 or 0 in current.shape:
        raise ValueError(f"integer_lif: current must be (B, T, C) with no empty side, got {tuple(current.shape)}")
    if not current.dtype.is_floating_point:
        raise ValueError(f"integer_lif: current must be a floating-point tensor, got {current.dtype}")
    B, _, C = current.shape
    membrane_decay = _per_channel("membrane_decay", membrane_decay, current, state_dtype)
    threshold = _per_channel("threshold", threshold, current, state_dtype)
    if potential is None:
        potential = torch.zeros(B, C, dtype=state_dtype, device=current.device)
    if potential.shape != (B, C) or potential.dtype != state_dtype:
        raise ValueError(
            f"integer_lif: potential is {potential.dtype} {tuple(potential.shape)}, want {state_dtype} {(B, C)} for "
            f"a {current.dtype} current"
        )
    if not current.device == potential.device == membrane_decay.device == threshold.device:
        raise ValueError(
            f"integer_lif: current is on {current.device}, potential on {potential.device}, "
            f"membrane_decay on {membrane_decay.device}, threshold on {threshold.device}; move them to one device"
        )
    if choose_backend(backend, "integer_lif", current) == "reference":
        return reference.integer_lif(
            current,
            potential,
            membrane_decay,
            threshold,
            levels=levels,
            signed=signed,
            reset=reset,
            decay_input=decay_input,
        )
    return integer_lif_operator(current, potential, membrane_decay, threshold, levels, signed, reset, decay_input)


def _check_options(
    membrane_decay: float | Tensor, threshold: float | Tensor, levels: int, reset: str, decay_input: bool
) -> None:
    if reset not in reference.RESETS:
        raise ValueError(f"integer_lif: reset is {reset!r}; known: {', '.join(reference.RESETS)}")
    if not isinstance(levels, int) or not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"integer_lif: levels must be a whole number from 1 to {MOST_LEVELS}, got {levels!r}")
    if not isinstance(threshold, Tensor) and not 0 < threshold < math.inf:
        raise ValueError(f"integer_lif: threshold must be a finite number above 0, got {threshold}")
    if not isinstance(membrane_decay, Tensor):
        highest = "below 1 (with decay_input a decay of 1 takes in nothing)" if decay_input else "at most 1"
        if not 0.0 <= membrane_decay <= 1.0 or (decay_input and membrane_decay == 1.0):
            raise ValueError(
                f"integer_lif: membrane_decay must be at least 0 and {highest}, got {membrane_decay}; tau = 2 is "
                f"decay = 0.5"
            )


def _per_channel(name: str, value: float | Tensor, current: Tensor, state_dtype: torch.dtype) -> Tensor:
    """Return `value` as a (C,) tensor of `state_dtype`."""
    C = current.shape[2]
    if not isinstance(value, Tensor):
        return torch.full((C,), value, dtype=state_dtype, device=current.device)
    if value.shape != (C,):
        raise ValueError(f"integer_lif: {name} has shape {tuple(value.shape)}, current has {C} channels; want ({C},)")
    return value.to(state_dtype)


@torch.library.custom_op("spikegpt::integer_lif", mutates_args=())
def integer_lif_operator(
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    threshold: Tensor,
    levels: int,
    signed: bool,
    reset: str,
    decay_input: bool,
) -> tuple[Tensor, Tensor]:
    """(spikes, final potential). Keeps only its inputs for the backward pass, which recomputes the potential."""
    return fast_kernels("integer_lif", current).integer_lif_forward(
        current, potential, membrane_decay, threshold, levels, signed, reset, decay_input
    )


@integer_lif_operator.register_fake
def _(current, potential, membrane_decay, threshold, *options):
    return torch.empty_like(current, memory_format=torch.contiguous_format), torch.empty_like(
        potential, memory_format=torch.contiguous_format
    )


@torch.library.custom_op("spikegpt::integer_lif_backward", mutates_args=())
def integer_lif_backward_operator(
    grad_spikes: Tensor,
    grad_final: Tensor,
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    threshold: Tensor,
    levels: int,
    signed: bool,
    reset: str,
    decay_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(grad of current (B, T, C), of potential (B, C), of membrane_decay (C,), of threshold (C,))."""
    return fast_kernels("integer_lif", current).integer_lif_backward(
        grad_spikes, grad_final, current, potential, membrane_decay, threshold, levels, signed, reset, decay_input
    )


@integer_lif_backward_operator.register_fake
def _(grad_spikes, grad_final, current, potential, membrane_decay, threshold, *options):
    # contiguous whatever the inputs are: the kernel fills new arrays
    return tuple(
        torch.empty_like(value, memory_format=torch.contiguous_format)
        for value in (current, potential, membrane_decay, threshold)
    )


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.levels, ctx.signed, ctx.reset, ctx.decay_input = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_spikes, grad_final):
    options = ctx.levels, ctx.signed, ctx.reset, ctx.decay_input
    grads = integer_lif_backward_operator(grad_spikes, grad_final, *ctx.saved_tensors, *options)
    return *grads, *(None for _ in options)


integer_lif_operator.register_autograd(_backward, setup_context=_save_for_backward)


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, Tensor]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters; the gain is a prepared constant.

    Without memory (a decay of 0 in every channel) nothing is charged up and nothing is reset: a quotient becomes a
    count.
    """
    current, _, membrane_decay, _, _, _, reset, decay_input = args
    steps = current.numel()
    remembering = steps if membrane_decay.any() else 0
    subtracts = reset == "subtract"
    return {
        "kind": "neuron",
        "mul": remembering * (1 + decay_input + subtracts),
        "div": steps,
        "add": remembering * (1 + subtracts),
        "compare": 2 * steps,
        "select": remembering * (not subtracts),
        "activation_reads": steps,
        "activation_writes": steps,
        "state_elements": membrane_decay.numel() if remembering else 0,
        "state_reads": remembering,
        "state_writes": remembering,
        "neuron_updates": steps,
        "events_out": int(output[0].count_nonzero()),
    }


torch.ops.spikegpt.integer_lif.default.op_cost = _op_cost
