"""The one door to the LIF neuron: checks, choice of backend, and the torch custom operator `spikegpt::lif`.

The equations are in `reference.lif_step`. Nothing is computed here.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..backends import choose_backend, fast_kernels
from ..checks import check_neuron_inputs
from ..operators import count_events, custom_operator, declare_cost, flatten, new_like, rebuild
from . import reference
from .options import LIFOptions

DEFAULTS = LIFOptions()


def lif(
    current: Tensor,
    potential: Tensor | None = None,
    *,
    membrane_decay: float | Tensor = 0.5,
    options: LIFOptions = DEFAULTS,
    backend: str = "auto",
    **changes: Any,
) -> tuple[Tensor, Tensor]:
    """Return (spikes, final membrane potential) of leaky integrate-and-fire neurons over a sequence.

    Args:
        current: (B, T, C) input current; float32, bfloat16, float16, or float64 (reference only).
        potential: (B, C) membrane potential carried in; zeros (at rest) if None. float32, or float64 with a float64
            current.
        membrane_decay: fraction of the potential kept per step, 1 - 1/tau; a number in [0, 1] or a (C,) tensor, which
            may learn.
        options: what kind of neuron; made once, its checks are paid for once.
        changes: fields of `options` that shall differ, by name: `threshold`, `reset`, `reset_potential`, `decay_input`,
            `detach_reset`, `surrogate`, `slope`. What each means stands in `LIFOptions`.

    Returns:
        spikes (B, T, C), zeros and ones in the dtype of `current`; potential (B, C) after the last reset.

    Raises:
        ValueError: a shape, dtype, device or option does not fit; the message names what was found and wanted.
    """
    if changes:
        options = dataclasses.replace(options, **changes)
    potential, membrane_decay = check_neuron_inputs(
        "lif", current, potential, options.decay_input, membrane_decay=membrane_decay
    )
    if choose_backend(backend, "lif", current) == "reference":
        return reference.lif(current, potential, membrane_decay, options)
    return lif_operator(current, potential, membrane_decay, *flatten(options))


# the fields of LIFOptions, in order
_OPTIONS = (
    "float threshold, str reset, float reset_potential, bool decay_input, bool detach_reset, str surrogate, float slope"
)


@custom_operator(
    "spikegpt::lif",
    mutates_args=(),
    schema=f"(Tensor current, Tensor potential, Tensor membrane_decay, {_OPTIONS}) -> (Tensor, Tensor)",
)
def lif_operator(current, potential, membrane_decay, *options):
    """(spikes, final potential). Keeps only `current` for the backward pass, which recomputes the potential."""
    kernels = fast_kernels("lif", current)
    return kernels.lif_forward(current, potential, membrane_decay, rebuild(LIFOptions, options))


@lif_operator.register_fake
def _(current, potential, membrane_decay, *options):
    return new_like(current), new_like(potential)


@custom_operator(
    "spikegpt::lif_backward",
    mutates_args=(),
    schema="(Tensor grad_spikes, Tensor grad_final, Tensor current, Tensor potential, Tensor membrane_decay, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def lif_backward_operator(grad_spikes, grad_final, current, potential, membrane_decay, *options):
    """(grad of current (B, T, C), of potential (B, C), of membrane_decay (C,))."""
    tensors = grad_spikes, grad_final, current, potential, membrane_decay
    return fast_kernels("lif", current).lif_backward(*tensors, rebuild(LIFOptions, options))


@lif_backward_operator.register_fake
def _(grad_spikes, grad_final, current, potential, membrane_decay, *options):
    return torch.empty_like(current), torch.empty_like(potential), torch.empty_like(membrane_decay)


def _save_for_backward(ctx, inputs, output):
    current, potential, membrane_decay, *ctx.options = inputs
    ctx.save_for_backward(current, potential, membrane_decay)


def _backward(ctx, grad_spikes, grad_final):
    grads = lif_backward_operator(grad_spikes, grad_final, *ctx.saved_tensors, *ctx.options)
    return *grads, *(None for _ in ctx.options)


lif_operator.register_autograd(_backward, setup_context=_save_for_backward)


def _op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, Tensor]) -> dict[str, int | str]:
    """What one call computes, for dispatch-mode counters; the gain and the leak towards rest are prepared constants."""
    current, _, membrane_decay, _, reset, reset_potential, decay_input = args[:7]
    steps = current.numel()
    return {
        "kind": "neuron",
        "mul": steps * (1 + decay_input),
        "add": steps * (1 + (reset_potential != 0.0) + (reset == "subtract")),
        "compare": steps,
        "select": steps * (reset == "zero"),
        "activation_reads": steps,
        "activation_writes": steps,
        "state_elements": membrane_decay.numel(),
        "state_reads": steps,
        "state_writes": steps,
        "neuron_updates": steps,
        "events_out": count_events(output[0])[0],
        "repeated_events": 0,
    }


declare_cost(torch.ops.spikegpt.lif.default, _op_cost)
