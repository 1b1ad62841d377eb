"""The one door to the integer LIF neuron: checks, choice of backend, the torch custom operator `spikegpt::integer_lif`.

The equations are in `reference.integer_lif_step`. Nothing is computed here.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..backends import choose_backend, fast_kernels
from ..checks import check_memoryless_inputs, check_neuron_inputs
from ..operators import count_events, custom_operator, declare_cost, flatten, new_like, rebuild
from ..pointwise.door import counted
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
    dtype: torch.dtype | None = None,
    **changes: Any,
) -> tuple[Tensor, Tensor]:
    """Return (spikes, final membrane potential) over a sequence, of neurons that may fire several times in a token.

    Args:
        current: (B, T, C) input current; float32, bfloat16, float16, or float64 (reference only).
        potential: (B, C) membrane potential carried in; zeros (at rest) if None. float32, or float64 with a float64
            current.
        membrane_decay: fraction of the potential kept per step, 1 - 1/tau; a number in [0, 1] or a (C,) tensor, which
            may learn. The number 0 makes the neuron memoryless, which is computed in one pass without a loop over time.
        threshold: potential that one spike stands for; a positive number or a (C,) tensor, which may learn. The values
            of a tensor are not looked at: keep them positive.
        options: what kind of neuron; made once, its checks are paid for once.
        dtype: of the spikes; None for that of `current`. bfloat16 and float16 hold them exactly.
        changes: fields of `options` that shall differ, by name: `levels`, `signed`, `reset`, `decay_input`. What each
            means stands in `IntegerLIFOptions`. No gradient flows through the reset.

    Returns:
        spikes (B, T, C), whole numbers from -levels (0 unless signed) to levels;
        potential (B, C) after the last reset.

    Raises:
        ValueError: a shape, dtype, device or option does not fit; the message names what was found and wanted.
    """
    if changes:
        options = dataclasses.replace(options, **changes)
    if not isinstance(threshold, Tensor) and not 0 < threshold < math.inf:
        raise ValueError(f"integer_lif: threshold must be a finite number above 0, got {threshold}")
    is_memoryless = potential is None and not isinstance(membrane_decay, Tensor) and membrane_decay == 0
    if is_memoryless and isinstance(current, Tensor) and choose_backend(backend, "integer_lif", current) == "numba":
        (threshold,) = check_memoryless_inputs("integer_lif", current, threshold=threshold)
        spikes, final, rate = memoryless_operator(current, threshold, *flatten(options), dtype or current.dtype)
        return counted(spikes, rate), final
    potential, membrane_decay, threshold = check_neuron_inputs(
        "integer_lif", current, potential, options.decay_input, membrane_decay=membrane_decay, threshold=threshold
    )
    dtype = dtype or current.dtype
    if choose_backend(backend, "integer_lif", current) == "reference":
        spikes, potential = reference.integer_lif(current, potential, membrane_decay, threshold, options)
    else:
        spikes, potential = integer_lif_operator(current, potential, membrane_decay, threshold, *flatten(options))
    return spikes.to(dtype), potential


# the fields of IntegerLIFOptions, in order; what operators take
OPTIONS = "int levels, bool signed, str reset, bool decay_input"
_INPUTS = f"Tensor current, Tensor potential, Tensor membrane_decay, Tensor threshold, {OPTIONS}"


@custom_operator("spikegpt::integer_lif", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
def integer_lif_operator(current, potential, membrane_decay, threshold, *options):
    """(spikes, final potential). Keeps only its inputs for the backward pass, which recomputes the potential."""
    tensors = current, potential, membrane_decay, threshold
    return fast_kernels("integer_lif", current).integer_lif_forward(*tensors, rebuild(IntegerLIFOptions, options))


@integer_lif_operator.register_fake
def _(current, potential, membrane_decay, threshold, *options):
    return new_like(current), new_like(potential)


@custom_operator(
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


@custom_operator(
    "spikegpt::integer_lif_memoryless",
    mutates_args=(),
    schema=f"(Tensor current, Tensor threshold, {OPTIONS}, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
)
def memoryless_operator(current, threshold, *options):
    """(spikes in `dtype`, final potential, firing rate) of neurons whose decay is 0, at rest before.

    Keeps only its inputs for the backward pass.
    """
    kernels, dtype = fast_kernels("integer_lif", current), options[-1]
    return kernels.memoryless_forward(current, threshold, rebuild(IntegerLIFOptions, options[:-1]), dtype)


@memoryless_operator.register_fake
def _(current, threshold, *options):
    B, _, C = current.shape
    final, rate = (current.new_empty(shape, dtype=torch.float32) for shape in ((B, C), ()))
    return torch.empty(current.shape, dtype=options[-1], device=current.device), final, rate


@custom_operator(
    "spikegpt::integer_lif_memoryless_backward",
    mutates_args=(),
    schema="(Tensor grad_spikes, Tensor? grad_final, Tensor? grad_rate, Tensor current, Tensor threshold, "
    f"{OPTIONS}) -> (Tensor, Tensor)",
)
def memoryless_backward_operator(grad_spikes, grad_final, grad_rate, current, threshold, *options):
    """(grad of current (B, T, C), of threshold (C,))."""
    tensors = grad_spikes, grad_final, grad_rate, current, threshold
    return fast_kernels("integer_lif", current).memoryless_backward(*tensors, rebuild(IntegerLIFOptions, options))


@memoryless_backward_operator.register_fake
def _(grad_spikes, grad_final, grad_rate, current, threshold, *options):
    return new_like(current), new_like(threshold)


def _save_memoryless(ctx, inputs, output):
    current, threshold, *ctx.options, _ = inputs
    ctx.save_for_backward(current, threshold)
    # the final potential and the rate are seldom used, and then have no gradient
    ctx.set_materialize_grads(False)


def _memoryless_backward(ctx, grad_spikes, grad_final, grad_rate):
    current, threshold = ctx.saved_tensors
    if grad_spikes is None:
        grad_spikes = torch.zeros_like(current)
    grads = memoryless_backward_operator(grad_spikes, grad_final, grad_rate, current, threshold, *ctx.options)
    return *grads, *(None for _ in ctx.options), None


memoryless_operator.register_autograd(_memoryless_backward, setup_context=_save_memoryless)


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, Tensor]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters; the gain is a prepared constant."""
    _, _, membrane_decay, _, _, _, reset, decay_input = args
    return _cost(output[0], reset, decay_input, membrane_decay.numel() if membrane_decay.any() else 0)


def _cost(spikes: Tensor, reset: str, decay_input: bool, state_elements: int) -> dict[str, int | str]:
    """What neurons compute that carry `state_elements` potentials of a text.

    Without memory (0 of them) nothing is charged up and nothing is reset: a quotient becomes a count.
    """
    steps = spikes.numel()
    remembering = steps if state_elements else 0
    events, units = count_events(spikes)
    return {
        "kind": "neuron",
        "mul": remembering * (1 + decay_input + (reset == "subtract")),
        "div": steps,
        "add": remembering * (1 + (reset == "subtract")),
        "compare": 2 * steps,
        "select": remembering * (reset == "zero"),
        "activation_reads": steps,
        "activation_writes": steps,
        "state_elements": state_elements,
        "state_reads": remembering,
        "state_writes": remembering,
        "neuron_updates": steps,
        "events_out": events,
        "repeated_events": units - events,
    }


declare_cost(torch.ops.spikegpt.integer_lif.default, _op_cost)


def memoryless_cost(spikes: Tensor) -> dict[str, int | str]:
    return _cost(spikes, "none", False, 0)


declare_cost(torch.ops.spikegpt.integer_lif_memoryless.default, lambda args, kwargs, output: memoryless_cost(output[0]))
