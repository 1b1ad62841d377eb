"""The doors to memoryless integer neurons that are one pass with what makes their currents: checks, choice, operators.

The equations are in `reference`. Nothing is computed here. "auto" fuses where a gradient is asked for, on a CPU, and
takes the separate operations elsewhere: the spikes are the same.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backends import choose_training_backend, fast_kernels
from ..checks import check_memoryless_inputs
from ..integer_lif.door import OPTIONS, memoryless_cost
from ..integer_lif.options import IntegerLIFOptions
from ..operators import custom_operator, declare_cost, flatten, new_like, rebuild
from ..pointwise.door import counted, gate_cost, squared_relu_cost
from ..token_shift.door import check_shift, token_shift_cost
from . import reference

# precisions that the kernels round currents to
ROUNDED = (torch.float32, torch.bfloat16)


def shifted_lif(
    x: Tensor,
    previous: Tensor | None,
    shares: Sequence[Tensor],
    thresholds: Sequence[float | Tensor],
    options: IntegerLIFOptions,
    backend: str = "auto",
    *,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Return the spikes (B, T, C) of memoryless neurons whose currents are the mixes of a token shift, for each share.

    Args:
        x, previous, shares: as of `token_shift`.
        thresholds: for each share, as of `integer_lif`.
        options: what kind of neurons.
        dtype: of currents and spikes; None for that of `x`.

    Raises:
        ValueError: as of `token_shift` and `integer_lif`.
    """
    check_shift(x, previous, shares)
    dtype = dtype or x.dtype
    inputs = (x, *shares) if previous is None else (x, previous, *shares)
    if not _fuses(backend, "shifted_lif", inputs, x.dtype, dtype):
        return reference.shifted_lif(x, previous, list(shares), list(thresholds), options, backend, dtype)
    rows = [_threshold("shifted_lif", x, threshold) for threshold in thresholds]
    results = shifted_operator(x, previous, [share.flatten() for share in shares], rows, *flatten(options), dtype)
    return list(map(counted, results[: len(shares)], results[len(shares) :]))


def squared_relu_lif(
    x: Tensor,
    threshold: float | Tensor,
    options: IntegerLIFOptions,
    backend: str = "auto",
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the spikes, in `dtype`, of memoryless neurons (B, T, C) whose currents are max(x, 0)^2.

    Raises:
        ValueError: as of `integer_lif`.
    """
    dtype = dtype or x.dtype
    if not _fuses(backend, "squared_relu_lif", (x,), x.dtype, dtype):
        return reference.squared_relu_lif(x, threshold, options, backend, dtype)
    row = _threshold("squared_relu_lif", x, threshold)
    return counted(*squared_relu_operator(x, row, *flatten(options), dtype))


def gated_lif(
    receptance: Tensor,
    y: Tensor,
    threshold: float | Tensor,
    options: IntegerLIFOptions,
    backend: str = "auto",
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the spikes, in `dtype`, of memoryless neurons (B, T, C) whose currents are sigmoid(receptance) * y.

    Raises:
        ValueError: as of `integer_lif`.
    """
    dtype, inputs = dtype or y.dtype, (receptance, y)
    is_alike = receptance.shape == y.shape and receptance.dtype == y.dtype
    if not is_alike or not _fuses(backend, "gated_lif", inputs, y.dtype, dtype):
        return reference.gated_lif(receptance, y, threshold, options, backend, dtype)
    row = _threshold("gated_lif", y, threshold)
    return counted(*gated_operator(receptance, y, row, *flatten(options), dtype))


def _fuses(backend: str, operation: str, inputs: Sequence[Tensor], *dtypes: torch.dtype) -> bool:
    return choose_training_backend(backend, operation, *inputs) == "numba" and all(kind in ROUNDED for kind in dtypes)


def _threshold(operation: str, current: Tensor, threshold: float | Tensor) -> Tensor:
    (row,) = check_memoryless_inputs(operation, current, threshold=threshold)
    return row


@custom_operator(
    "spikegpt::shifted_lif",
    mutates_args=(),
    schema=f"(Tensor x, Tensor? previous, Tensor[] shares, Tensor[] thresholds, {OPTIONS}, ScalarType dtype)"
    " -> Tensor[]",
)
def shifted_operator(x, previous, shares, thresholds, *options):
    """Spikes of every share, then their firing rates. Keeps only its inputs for the backward pass, as the others do."""
    kernels, kind = fast_kernels("fused_lif", x), rebuild(IntegerLIFOptions, options[:-1])
    spikes, rates = kernels.shifted_forward(x, previous, shares, thresholds, kind, options[-1])
    return [*spikes, *rates]


@shifted_operator.register_fake
def _(x, previous, shares, thresholds, *options):
    spikes = [torch.empty(x.shape, dtype=options[-1], device=x.device) for _ in shares]
    return spikes + [x.new_empty((), dtype=torch.float32) for _ in shares]


@custom_operator(
    "spikegpt::shifted_lif_backward",
    mutates_args=(),
    schema="(Tensor[] grad_spikes, Tensor?[] grad_rates, Tensor x, Tensor? previous, Tensor[] shares, "
    f"Tensor[] thresholds, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def shifted_backward_operator(grad_spikes, grad_rates, x, previous, shares, thresholds, *options):
    """Gradients of (x, previous (B, C), shares (shares, C), thresholds (shares, C))."""
    kernels, tensors = fast_kernels("fused_lif", x), (grad_spikes, grad_rates, x, previous, shares, thresholds)
    return kernels.shifted_backward(*tensors, rebuild(IntegerLIFOptions, options))


@shifted_backward_operator.register_fake
def _(grad_spikes, grad_rates, x, previous, shares, thresholds, *options):
    B, _, C = x.shape
    rows = [x.new_empty((len(shares), C), dtype=torch.float32) for _ in range(2)]
    return new_like(x), x.new_empty((B, C)), *rows


def _save_shifted(ctx, inputs, output):
    x, previous, shares, thresholds, *ctx.options, ctx.dtype = inputs
    ctx.save_for_backward(x, previous, *shares, *thresholds)


def _shifted_backward(ctx, grads):
    x, previous, *rows = ctx.saved_tensors
    number = len(rows) // 2
    of_spikes = [torch.zeros(x.shape, dtype=ctx.dtype) if grad is None else grad for grad in grads[:number]]
    grad_x, grad_previous, *of_rows = shifted_backward_operator(
        of_spikes, grads[number:], x, previous, rows[:number], rows[number:], *ctx.options
    )
    of_shares, of_thresholds = (list(part.unbind()) for part in of_rows)
    of_shares = [grad.to(share.dtype) for grad, share in zip(of_shares, rows, strict=False)]
    of_options = (None,) * (len(ctx.options) + 1)
    return grad_x, None if previous is None else grad_previous, of_shares, of_thresholds, *of_options


shifted_operator.register_autograd(_shifted_backward, setup_context=_save_shifted)


def _make_driven_operator(name: str, drivers: Sequence[str]):
    """Make the operator of neurons that a function of tensors shaped as the spikes drives; return it.

    It gives (spikes in `dtype`, firing rate).
    """
    tensors, number = ", ".join(f"Tensor {part}" for part in (*drivers, "threshold")), len(drivers) + 1

    @custom_operator(
        f"spikegpt::{name}_lif", mutates_args=(), schema=f"({tensors}, {OPTIONS}, ScalarType dtype) -> (Tensor, Tensor)"
    )
    def operator(*arguments):
        kernels, kind = fast_kernels("fused_lif", arguments[0]), rebuild(IntegerLIFOptions, arguments[number:-1])
        return getattr(kernels, f"{name}_forward")(*arguments[:number], kind, arguments[-1])

    @operator.register_fake
    def _(x, *others):
        return torch.empty(x.shape, dtype=others[-1], device=x.device), x.new_empty((), dtype=torch.float32)

    @custom_operator(
        f"spikegpt::{name}_lif_backward",
        mutates_args=(),
        schema=f"(Tensor grad_spikes, Tensor? grad_rate, {tensors}, {OPTIONS}) -> ({', '.join(['Tensor'] * number)})",
    )
    def backward_operator(grad_spikes, grad_rate, *arguments):
        kernels, kind = fast_kernels("fused_lif", grad_spikes), rebuild(IntegerLIFOptions, arguments[number:])
        return getattr(kernels, f"{name}_backward")(grad_spikes, grad_rate, *arguments[:number], kind)

    @backward_operator.register_fake
    def _(grad_spikes, grad_rate, *arguments):
        return tuple(map(new_like, arguments[:number]))

    def save(ctx, inputs, output):
        ctx.options, ctx.dtype = inputs[number:-1], inputs[-1]
        ctx.save_for_backward(*inputs[:number])
        # spikes, or their rate, may be of no use to anybody
        ctx.set_materialize_grads(False)

    def backward(ctx, grad_spikes, grad_rate):
        x, *others = ctx.saved_tensors
        if grad_spikes is None:
            grad_spikes = torch.zeros(x.shape, dtype=ctx.dtype)
        grads = backward_operator(grad_spikes, grad_rate, x, *others, *ctx.options)
        return *grads, *(None for _ in ctx.options), None

    operator.register_autograd(backward, setup_context=save)
    return operator


squared_relu_operator = _make_driven_operator("squared_relu", ["x"])
gated_operator = _make_driven_operator("gated", ["receptance", "y"])


def _added(*costs: dict[str, int | str]) -> dict[str, int | str]:
    """Return what operators compute together, as one of neurons."""
    total: Counter = Counter()
    for cost in costs:
        total.update({name: count for name, count in cost.items() if name != "kind"})
    return {**total, "kind": "neuron"}


def _shifted_cost(args: tuple, kwargs: dict, output: list[Tensor]) -> dict[str, int | str]:
    spikes = output[: len(args[2])]
    return _added(token_shift_cost(args, kwargs, spikes), *map(memoryless_cost, spikes))


def _driven_cost(driver_cost: Callable) -> Callable[[tuple, dict, tuple[Tensor, Tensor]], dict[str, int | str]]:
    def op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, Tensor]) -> dict[str, int | str]:
        spikes, _ = output
        return _added(driver_cost(args, kwargs, spikes), memoryless_cost(spikes))

    return op_cost


declare_cost(torch.ops.spikegpt.shifted_lif.default, _shifted_cost)
declare_cost(torch.ops.spikegpt.squared_relu_lif.default, _driven_cost(squared_relu_cost))
declare_cost(torch.ops.spikegpt.gated_lif.default, _driven_cost(gate_cost))
