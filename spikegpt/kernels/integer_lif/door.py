"""The one door to the integer LIF neuron: checks, choice of backend, the torch custom operator `spikegpt::integer_lif`.

The equations are in `reference.integer_lif_step`. Nothing is computed here.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..backends import choose_backend, fast_kernels
from ..checks import check_neuron_inputs
from ..operators import count_events, declare_cost, flatten, new_like, rebuild
from . import reference
from .options import IntegerLIFOptions

DEFAULTS = IntegerLIFOptions()


def integer_lif(
    current: Tensor,
    potential: Tensor | None = None,
    *,
    membrane_decay: float | Tensor = 0.0,
    threshold: float | Tensor = 1.0,
    options: IntegerLIFOptions = DEFAULTS,
    backend: str = "auto",
    **changes: Any,
) -> tuple[Tensor, Tensor]:
    """Return (spikes, final membrane potential) over a sequence, of neurons that may fire several times in a token.

    Args:
        current: (B, T, C) input current; float32, bfloat16, float16, or float64 (reference only).
        potential: (B, C) membrane potential carried in; zeros (at rest) if None. float32, or float64 with a float64
            current.
        membrane_decay: fraction of the potential kept per step, 1 - 1/tau; a number in [0, 1] or a (C,) tensor, which
            may learn. All zeros make the neuron memoryless.
        threshold: potential that one spike stands for; a positive number or a (C,) tensor, which may learn. The values
            of a tensor are not looked at: keep them positive.
        options: what kind of neuron; made once, its checks are paid for once.
        changes: fields of `options` that shall differ, by name: `levels`, `signed`, `reset`, `decay_input`. What each
            means stands in `IntegerLIFOptions`. No gradient flows through the reset.

    Returns:
        spikes (B, T, C), whole numbers from -levels (0 unless signed) to levels in the dtype of `current`;
        potential (B, C) after the last reset.

    Raises:
        ValueError: a shape, dtype, device or option does not fit; the message names what was found and wanted.
    """
    if changes:
        options = dataclasses.replace(options, **changes)
    if not isinstance(threshold, Tensor) and not 0 < threshold < math.inf:
        raise ValueError(f"integer_lif: threshold must be a finite number above 0, got {threshold}")
    potential, membrane_decay, threshold = check_neuron_inputs(
        "integer_lif", current, potential, options.decay_input, membrane_decay=membrane_decay, threshold=threshold
    )
    if choose_backend(backend, "integer_lif", current) == "reference":
        return reference.integer_lif(current, potential, membrane_decay, threshold, options)
    return integer_lif_operator(current, potential, membrane_decay, threshold, *flatten(options))


# what it takes; the last four are the fields of IntegerLIFOptions, in order
_INPUTS = (
    "Tensor current, Tensor potential, Tensor membrane_decay, Tensor threshold, "
    "int levels, bool signed, str reset, bool decay_input"
)


@torch.library.custom_op("spikegpt::integer_lif", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
def integer_lif_operator(current, potential, membrane_decay, threshold, *options):
    """(spikes, final potential). Keeps only its inputs for the backward pass, which recomputes the potential."""
    tensors = current, potential, membrane_decay, threshold
    return fast_kernels("integer_lif", current).integer_lif_forward(*tensors, rebuild(IntegerLIFOptions, options))


@integer_lif_operator.register_fake
def _(current, potential, membrane_decay, threshold, *options):
    return new_like(current), new_like(potential)


@torch.library.custom_op(
    "spikegpt::integer_lif_backward",
    mutates_args=(),
    schema=f"(Tensor grad_spikes, Tensor grad_final, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def integer_lif_backward_operator(grad_spikes, grad_final, current, potential, membrane_decay, threshold, *options):
    """(grad of current (B, T, C), of potential (B, C), of membrane_decay (C,), of threshold (C,))."""
    tensors = grad_spikes, grad_final, current, potential, membrane_decay, threshold
    return fast_kernels("integer_lif", current).integer_lif_backward(*tensors, rebuild(IntegerLIFOptions, options))


@integer_lif_backward_operator.register_fake
def _(grad_spikes, grad_final, current, potential, membrane_decay, threshold, *options):
    return tuple(map(new_like, (current, potential, membrane_decay, threshold)))


def _save_for_backward(ctx, inputs, output):
    current, potential, membrane_decay, threshold, *ctx.options = inputs
    ctx.save_for_backward(current, potential, membrane_decay, threshold)


def _backward(ctx, grad_spikes, grad_final):
    grads = integer_lif_backward_operator(grad_spikes, grad_final, *ctx.saved_tensors, *ctx.options)
    return *grads, *(None for _ in ctx.options)


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
    events, units = count_events(output[0])
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
        "events_out": events,
        "repeated_events": units - events,
    }


declare_cost(torch.ops.spikegpt.integer_lif.default, _op_cost)
