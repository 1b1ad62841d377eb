"""The one door to the pointwise functions: checks, choice of backend, torch custom operators.

The equations are in `reference`. Nothing is computed here. "auto" takes torch's own operators where no gradient is
asked for, and on a GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends import choose_backend, choose_training_backend, fast_kernels
from ..operators import custom_operator, declare_cost, new_like
from . import reference


def squared_relu(x: Tensor, backend: str = "auto") -> Tensor:
    """Return max(x, 0)^2, of any shape."""
    if choose_training_backend(backend, "squared_relu", x) == "reference":
        return reference.squared_relu(x)
    return squared_relu_operator(x)


def gate(receptance: Tensor, y: Tensor, backend: str = "auto") -> Tensor:
    """Return sigmoid(receptance) * y, of any shape."""
    is_alike = receptance.shape == y.shape and receptance.dtype == y.dtype
    if not is_alike or choose_training_backend(backend, "gate", receptance, y) == "reference":
        return reference.gate(receptance, y)
    return gate_operator(receptance, y)


def dropout(x: Tensor, rate: float, backend: str = "auto") -> Tensor:
    """Return x with a share of `rate` of its numbers set to 0 and the others over 1 - rate, as torch's generator says.

    The fast version draws one seed from it, and from that each number's fate; the reference draws for each.

    Raises:
        ValueError: the rate is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate must be at least 0 and below 1, got {rate}")
    if not rate:
        return x
    if choose_training_backend(backend, "dropout", x) == "reference":
        return reference.dropout(x, rate)
    return dropout_operator(x, rate, int(torch.randint(2**63 - 1, ())))


# the attribute of spikes that holds their rate; it is lost, and the rate counted anew, where a tensor is made of them
_RATE = "_spikegpt_firing_rate"


def counted(spikes: Tensor, rate: Tensor) -> Tensor:
    """Return `spikes`, whose firing rate (scalar, with its gradient) is known to be `rate`."""
    # torch's compiler knows no attributes of tensors
    if not torch.compiler.is_compiling():
        setattr(spikes, _RATE, rate)
    return spikes


def firing_rate(spikes: Tensor, backend: str = "auto") -> Tensor:
    """Return the share of neurons that fired (scalar float32), of spikes of any shape: the mean of min(|spike|, 1).

    Its gradient, straight through, pushes towards silence. "auto" takes the rate that the neurons' kernel counted as it
    emitted these spikes, where it did: its gradient costs no pass of its own.
    """
    rate = getattr(spikes, _RATE, None)
    if rate is not None and backend == "auto":
        return rate
    if choose_training_backend(backend, "firing_rate", spikes) == "reference":
        return reference.firing_rate(spikes)
    return firing_rate_operator(spikes)


def rescale_columns(
    weights: list[Tensor], grads: list[Tensor], worths: list[Tensor], backend: str = "auto"
) -> list[Tensor]:
    """Divide the columns of weights, each (out, in), by `worths` and multiply those of their gradients, all in place.

    Returns sum(gradient * weight) of each column (in,), from before: what one factor of its weights would get.

    Args:
        worths: (in,) for each, none of them 0.
        backend: "auto" takes torch's own operators where one of them is not float32 without gaps, on a CPU.

    Raises:
        ValueError: "numba" was asked for, and cannot work in the memory of such a one.
    """
    kept = *weights, *grads
    if not kept:
        return []
    strange = [part for part in kept if not (part.is_cpu and part.dtype == torch.float32 and part.is_contiguous())]
    if (backend == "auto" and strange) or choose_backend(backend, "rescale_columns", kept[0]) == "reference":
        return reference.rescale_columns(weights, grads, worths)
    if strange:
        raise ValueError(
            "rescale_columns: numba wants weights and gradients float32 without gaps in memory, on the CPU, got "
            f"{strange[0].dtype}, {tuple(strange[0].shape)}; use backend='auto'"
        )
    return fast_kernels("pointwise", kept[0]).rescale_columns(weights, grads, worths)


@custom_operator("spikegpt::squared_relu", mutates_args=())
def squared_relu_operator(x: Tensor) -> Tensor:
    """Keeps only its input for the backward pass, as the others do."""
    return fast_kernels("pointwise", x).squared_relu_forward(x)


@custom_operator("spikegpt::squared_relu_backward", mutates_args=())
def squared_relu_backward_operator(grad: Tensor, x: Tensor) -> Tensor:
    return fast_kernels("pointwise", x).squared_relu_backward(grad, x)


@custom_operator("spikegpt::gate", mutates_args=())
def gate_operator(receptance: Tensor, y: Tensor) -> Tensor:
    return fast_kernels("pointwise", y).gate_forward(receptance, y)


@custom_operator("spikegpt::gate_backward", mutates_args=())
def gate_backward_operator(grad: Tensor, receptance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return fast_kernels("pointwise", y).gate_backward(grad, receptance, y)


@custom_operator("spikegpt::dropout", mutates_args=())
def dropout_operator(x: Tensor, rate: float, seed: int) -> Tensor:
    """The same `seed` drops the same numbers."""
    return fast_kernels("pointwise", x).dropout(x, rate, seed)


@custom_operator("spikegpt::firing_rate", mutates_args=())
def firing_rate_operator(spikes: Tensor) -> Tensor:
    return fast_kernels("pointwise", spikes).firing_rate_forward(spikes)


@custom_operator("spikegpt::firing_rate_backward", mutates_args=())
def firing_rate_backward_operator(grad: Tensor, spikes: Tensor) -> Tensor:
    return fast_kernels("pointwise", spikes).firing_rate_backward(grad, spikes)


for operator in (squared_relu_operator, dropout_operator):
    operator.register_fake(lambda x, *_: new_like(x))
for operator in (squared_relu_backward_operator, gate_operator, firing_rate_backward_operator):
    operator.register_fake(lambda _, x: new_like(x))
firing_rate_operator.register_fake(lambda spikes: spikes.new_empty((), dtype=torch.float32))
gate_backward_operator.register_fake(lambda _, receptance, y: (new_like(receptance), new_like(y)))


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _save_draw(ctx, inputs, output):
    _, ctx.rate, ctx.seed = inputs


squared_relu_operator.register_autograd(
    lambda ctx, grad: squared_relu_backward_operator(grad, *ctx.saved_tensors), setup_context=_save_inputs
)
firing_rate_operator.register_autograd(
    lambda ctx, grad: firing_rate_backward_operator(grad, *ctx.saved_tensors), setup_context=_save_inputs
)
gate_operator.register_autograd(
    lambda ctx, grad: gate_backward_operator(grad, *ctx.saved_tensors), setup_context=_save_inputs
)
dropout_operator.register_autograd(
    lambda ctx, grad: (dropout_operator(grad, ctx.rate, ctx.seed), None, None), setup_context=_save_draw
)


def _costs(reads: int, **per_number: int) -> Callable[[tuple, dict, Tensor], dict[str, int | str]]:
    """Return what says that an operator computes what its reference does: of every number it makes, so much."""

    def op_cost(args: tuple, kwargs: dict, output: Tensor) -> dict[str, int | str]:
        number = output.numel()
        counts = {name: count * number for name, count in per_number.items()}
        return {"kind": "elementwise", **counts, "activation_reads": reads * number}

    return op_cost


squared_relu_cost = _costs(reads=2, compare=1, mul=1, activation_writes=2)
declare_cost(torch.ops.spikegpt.squared_relu.default, squared_relu_cost)
gate_cost = _costs(reads=3, sigmoid=1, mul=1, activation_writes=2)
declare_cost(torch.ops.spikegpt.gate.default, gate_cost)
declare_cost(torch.ops.spikegpt.dropout.default, _costs(reads=1, compare=1, mul=1, activation_writes=1))
