"""The one door to the LIF neuron: checks, choice of backend, and the torch custom operator `spikegpt::lif`.

The equations are in `reference.lif_step`. Nothing is computed here.
"""

import torch
from torch import Tensor

from .. import reference
from ..backends import choose_backend, fast_kernels


def lif(
    current: Tensor,
    potential: Tensor | None = None,
    *,
    membrane_decay: float | Tensor = 0.5,
    threshold: float = 1.0,
    reset: str = "zero",
    reset_potential: float = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: str = "atan",
    slope: float = 2.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return (spikes, final membrane potential) of leaky integrate-and-fire neurons over a sequence.

    Args:
        current: (B, T, C) input current; float32, bfloat16, float16, or float64 (reference only).
        potential: (B, C) membrane potential carried in; zeros (at rest) if None. float32, or float64 with a float64
            current.
        membrane_decay: fraction of the potential kept per step, 1 - 1/tau; a number in [0, 1] or a (C,) tensor, which
            may learn.
        threshold: a neuron fires when its potential is >= this.
        reset: "zero" puts the potential at `reset_potential` after a spike, "subtract" takes `threshold` off it.
        reset_potential: where "zero" resets to, and what the potential leaks towards.
        decay_input: multiply the current by 1 - membrane_decay, as SpikeGPT and SpikingJelly's default do.
        detach_reset: keep the gradient from flowing through the reset.
        surrogate, slope: derivative used for the step, see `reference.surrogate_derivative`.

    Returns:
        spikes (B, T, C), zeros and ones in the dtype of `current`; potential (B, C) after the last reset.

    Raises:
        ValueError: a shape, dtype, device or option does not fit; the message names what was found and wanted.
    """
    state_dtype = torch.float64 if current.dtype == torch.float64 else torch.float32
    _check_options(threshold, reset, reset_potential, surrogate, slope)
    if current.dim() != 3 or 0 in current.shape:
        raise ValueError(f"lif: current must be (B, T, C) with no empty side, got {tuple(current.shape)}")
    if not current.dtype.is_floating_point:
        raise ValueError(f"lif: current must be a floating-point tensor, got {current.dtype}")
    B, _, C = current.shape
    if not isinstance(membrane_decay, Tensor):
        highest = "below 1 (with decay_input a decay of 1 takes in nothing)" if decay_input else "at most 1"
        if not 0.0 <= membrane_decay <= 1.0 or (decay_input and membrane_decay == 1.0):
            raise ValueError(
                f"lif: membrane_decay must be at least 0 and {highest}, got {membrane_decay}; tau = 2 is decay = 0.5"
            )
        membrane_decay = torch.full((C,), membrane_decay, dtype=state_dtype, device=current.device)
    if membrane_decay.shape != (C,):
        raise ValueError(
            f"lif: membrane_decay has shape {tuple(membrane_decay.shape)}, current has {C} channels; want ({C},)"
        )
    if potential is None:
        potential = torch.zeros(B, C, dtype=state_dtype, device=current.device)
    if potential.shape != (B, C) or potential.dtype != state_dtype:
        raise ValueError(
            f"lif: potential is {potential.dtype} {tuple(potential.shape)}, want {state_dtype} {(B, C)} for a "
            f"{current.dtype} current"
        )
    membrane_decay = membrane_decay.to(state_dtype)
    if not current.device == potential.device == membrane_decay.device:
        raise ValueError(
            f"lif: current is on {current.device}, potential on {potential.device}, "
            f"membrane_decay on {membrane_decay.device}; move them to one device"
        )
    if choose_backend(backend, "lif", current) == "reference":
        return reference.lif(
            current,
            potential,
            membrane_decay,
            threshold=threshold,
            reset=reset,
            reset_potential=reset_potential,
            decay_input=decay_input,
            detach_reset=detach_reset,
            surrogate=surrogate,
            slope=slope,
        )
    return lif_operator(
        current,
        potential,
        membrane_decay,
        threshold,
        reset,
        reset_potential,
        decay_input,
        detach_reset,
        surrogate,
        slope,
    )


def _check_options(threshold: float, reset: str, reset_potential: float, surrogate: str, slope: float) -> None:
    if reset not in reference.RESETS:
        raise ValueError(f"lif: reset is {reset!r}; known: {', '.join(reference.RESETS)}")
    if surrogate not in reference.SURROGATES:
        raise ValueError(f"lif: surrogate is {surrogate!r}; known: {', '.join(reference.SURROGATES)}")
    if not slope > 0:
        raise ValueError(f"lif: slope must be positive, got {slope}")
    if not threshold > reset_potential:
        raise ValueError(
            f"lif: threshold ({threshold}) must lie above reset_potential ({reset_potential}), or every neuron fires "
            f"at rest"
        )
    if reset == "subtract" and reset_potential != 0.0:
        raise ValueError(f"lif: reset_potential {reset_potential} needs reset='zero'; 'subtract' rests at 0")


@torch.library.custom_op("spikegpt::lif", mutates_args=())
def lif_operator(
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    threshold: float,
    reset: str,
    reset_potential: float,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """(spikes, final potential). Keeps only `current` for the backward pass, which recomputes the potential."""
    return fast_kernels("lif", current).lif_forward(
        current, potential, membrane_decay, threshold, reset, reset_potential, decay_input
    )


@lif_operator.register_fake
def _(current, potential, membrane_decay, *options):
    return torch.empty_like(current, memory_format=torch.contiguous_format), torch.empty_like(
        potential, memory_format=torch.contiguous_format
    )


@torch.library.custom_op("spikegpt::lif_backward", mutates_args=())
def lif_backward_operator(
    grad_spikes: Tensor,
    grad_final: Tensor,
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    threshold: float,
    reset: str,
    reset_potential: float,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad of current (B, T, C), of potential (B, C), of membrane_decay (C,))."""
    return fast_kernels("lif", current).lif_backward(
        grad_spikes,
        grad_final,
        current,
        potential,
        membrane_decay,
        threshold,
        reset,
        reset_potential,
        decay_input,
        detach_reset,
        surrogate,
        slope,
    )


@lif_backward_operator.register_fake
def _(grad_spikes, grad_final, current, potential, membrane_decay, *options):
    return torch.empty_like(current), torch.empty_like(potential), torch.empty_like(membrane_decay)


def _save_for_backward(ctx, inputs, output):
    current, potential, membrane_decay, *ctx.options = inputs
    ctx.save_for_backward(current, potential, membrane_decay)


def _backward(ctx, grad_spikes, grad_final):
    current, potential, membrane_decay = ctx.saved_tensors
    grads = lif_backward_operator(grad_spikes, grad_final, current, potential, membrane_decay, *ctx.options)
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
        "events_out": int(output[0].count_nonzero()),
    }


torch.ops.spikegpt.lif.default.op_cost = _op_cost
