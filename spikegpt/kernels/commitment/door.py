"""The one door to the commitment error: checks, choice of backend, the torch custom operator.

The equation is in `reference.commitment_error`. Nothing is computed here.
"""

import torch
from torch import Tensor

from ..backends import choose_training_backend, fast_kernels
from ..checks import check_memoryless_inputs
from ..integer_lif.options import IntegerLIFOptions
from ..operators import custom_operator, new_like
from . import reference


def commitment_error(
    current: Tensor, threshold: float | Tensor, options: IntegerLIFOptions, backend: str = "auto"
) -> Tensor:
    """Return how far currents (B, T, C) lie from what memoryless neurons make of them, as a share of their energy.

    Scalar float32; 0 where each current is the middle of those that emit as many spikes, or 0. Its gradient reaches the
    currents alone, and draws them towards these middles, away from thresholds.
    Source: the commitment loss of van den Oord, Vinyals and Kavukcuoglu 2017, arXiv 1711.00937.

    Args:
        threshold, options: as of `integer_lif`; of the options, `levels` and `signed` are used.

    Raises:
        ValueError: as of `integer_lif`.
    """
    (row,) = check_memoryless_inputs("commitment_error", current, threshold=threshold)
    if choose_training_backend(backend, "commitment_error", current) == "reference":
        return reference.commitment_error(current, row, options.levels, options.signed)
    share, _ = commitment_operator(current, row.detach(), options.levels, options.signed)
    return share


@custom_operator("spikegpt::commitment", mutates_args=())
def commitment_operator(current: Tensor, threshold: Tensor, levels: int, signed: bool) -> tuple[Tensor, Tensor]:
    """(the share; the energy in squared thresholds, which has no gradient), both scalar."""
    return fast_kernels("commitment", current).commitment_forward(current, threshold, levels, signed)


@commitment_operator.register_fake
def _(current, threshold, levels, signed):
    return tuple(current.new_empty((), dtype=torch.float32) for _ in range(2))


@custom_operator("spikegpt::commitment_backward", mutates_args=())
def commitment_backward_operator(
    grad: Tensor, share: Tensor, energy: Tensor, current: Tensor, threshold: Tensor, levels: int, signed: bool
) -> Tensor:
    """The gradient of the currents (B, T, C), from that of the share."""
    kernels = fast_kernels("commitment", current)
    return kernels.commitment_backward(grad, share, energy, current, threshold, levels, signed)


@commitment_backward_operator.register_fake
def _(grad, share, energy, current, threshold, levels, signed):
    return new_like(current)


def _save_for_backward(ctx, inputs, output):
    current, threshold, ctx.levels, ctx.signed = inputs
    ctx.save_for_backward(*output, current, threshold)


def _backward(ctx, grad, _):
    return commitment_backward_operator(grad, *ctx.saved_tensors, ctx.levels, ctx.signed), None, None, None


commitment_operator.register_autograd(_backward, setup_context=_save_for_backward)
