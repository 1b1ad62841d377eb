"""The one door to the event-driven matrix-vector product: checks, choice of backend, `spikegpt::event_matvec`.

The last is a torch custom operator. The definition is `reference.event_matvec`; nothing is computed here. For decoding:
there is no gradient.
"""

from typing import Any

import torch
from torch import Tensor

from ..backends import choose_backend
from ..operators import custom_operator, declare_cost
from . import gpu, reference

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def event_matvec(spikes: Tensor, weight: Tensor, scale: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return spikes @ weight, times `scale`; on CUDA only rows whose input fired are read, summed in one order.

    On the CPU this is the reference: the fast CPU engine runs whole tokens (`generate/compiled`) and does not come
    here.

    Args:
        spikes: (N, in), one row per text: whole numbers, mostly 0; float32, bfloat16, float16, or float64 (reference
            only).
        weight: (in, out), contiguous, one row per input: float32, bfloat16 or int8. `linear.weight.t().contiguous()`,
            made once.
        scale: (out,) float32, what each output of an int8 weight is multiplied by; None for the other dtypes.

    Returns:
        (N, out) in the dtype of `spikes`; float32 inside.

    Raises:
        ValueError: a shape, dtype, device or backend does not fit, or a gradient is wanted; the message names what was
            found and wanted.
    """
    _check_inputs(spikes, weight, scale)
    # no package is missing on the CPU, there is nothing to warn of
    if backend == "auto" and spikes.device.type in ("cpu", "meta"):
        backend = "reference"
    chosen = choose_backend(backend, "event_matvec", spikes)
    if chosen == "numba":
        raise ValueError(
            "event_matvec: backend 'numba' has no kernel for this product alone; "
            "use backend='auto', or the engine for whole tokens"
        )
    return (reference.event_matvec if chosen == "reference" else event_matvec_operator)(spikes, weight, scale)


def _check_inputs(spikes: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    if spikes.dim() != 2 or 0 in spikes.shape:
        raise ValueError(f"event_matvec: spikes must be (N, in) with no empty side, got {tuple(spikes.shape)}")
    if not spikes.dtype.is_floating_point:
        raise ValueError(f"event_matvec: spikes must be a floating-point tensor, got {spikes.dtype}")
    if weight.dim() != 2 or weight.shape[0] != spikes.shape[1] or 0 in weight.shape:
        raise ValueError(
            f"event_matvec: weight is {tuple(weight.shape)}, spikes are {tuple(spikes.shape)}; "
            f"want ({spikes.shape[1]}, out)"
        )
    if weight.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"event_matvec: weight must be float32, bfloat16 or int8, got {weight.dtype}")
    if not weight.is_contiguous():
        raise ValueError(
            f"event_matvec: weight has strides {weight.stride()}, want one contiguous row per input; "
            "call .contiguous() once before"
        )
    if (scale is not None) != (weight.dtype == torch.int8):
        found = "none" if scale is None else "one"
        raise ValueError(
            f"event_matvec: int8 weights need a scale and no others have one; weight is {weight.dtype}, got {found}"
        )
    if scale is not None and (scale.shape != weight.shape[1:] or scale.dtype != torch.float32):
        raise ValueError(
            f"event_matvec: scale is {scale.dtype} {tuple(scale.shape)}, want torch.float32 {tuple(weight.shape[1:])}"
        )
    tensors = {
        name: tensor
        for name, tensor in (("spikes", spikes), ("weight", weight), ("scale", scale))
        if tensor is not None
    }
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"event_matvec: {found}; move them to one device")
    learning = [name for name, tensor in tensors.items() if tensor.requires_grad]
    if learning and torch.is_grad_enabled():
        raise ValueError(
            f"event_matvec: {', '.join(learning)} would need a gradient and there is none; "
            "call it under torch.no_grad()"
        )


@custom_operator("spikegpt::event_matvec", mutates_args=())
def event_matvec_operator(spikes: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """(N, out) in the dtype of `spikes`."""
    return gpu.event_matvec_forward(spikes, weight, scale)


@event_matvec_operator.register_fake
def _(spikes, weight, scale):
    return spikes.new_empty(spikes.shape[0], weight.shape[1])


def _op_cost(args: tuple, kwargs: dict, output: Tensor) -> dict[str, Any]:
    """What one call computes, for dispatch-mode counters.

    The product of two operands, which is counted by their values, and the scale of each output.
    """
    spikes, weight, scale = args
    scaled = 0 if scale is None else spikes.shape[:-1].numel() * weight.shape[1]
    return {"kind": "matmul", "product": (spikes, weight), "mul": scaled}


declare_cost(torch.ops.spikegpt.event_matvec.default, _op_cost)
