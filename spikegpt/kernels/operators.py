"""What the torch custom operators of the doors have in common: calls, new results, declared costs, options made flat.

A schema of torch holds numbers, words and tensors only, so checked options go through an operator field by field.
"""

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


class Operator:
    """A torch custom operator, and the same function called past torch's dispatcher where nobody looks.

    The dispatcher, in Python for such operators, takes longer than a small kernel. Who looks is in `_is_watched`;
    `definition` is what they see.
    """

    def __init__(self, body: Callable[..., Any], definition: Any):
        self._body, self.definition = body, definition
        self._function: type[torch.autograd.Function] | None = None
        self.register_fake = definition.register_fake
        schema = definition._opoverload._schema
        self._defaults = tuple(argument.default_value for argument in schema.arguments)
        self._gives_list = isinstance(schema.returns[0].type, torch.ListType)

    def __call__(self, *inputs: Any) -> Any:
        inputs += self._defaults[len(inputs) :]
        tensors = list(_tensors_of(inputs))
        if _is_watched(tensors):
            return self.definition(*inputs)
        if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
            return self._body(*inputs)
        if self._function is None:
            # torch says that there is no gradient, once one is asked for
            return self.definition(*inputs)
        sizes = tuple(len(part) if isinstance(part, list) else None for part in inputs)
        output = self._function.apply(sizes, *_flat(sizes, inputs))
        return list(output) if self._gives_list else output

    def differentiate_by(self, backward: "Operator") -> None:
        """Let `backward` give the gradients: of the gradients of all outcomes and of all inputs, which are tensors."""

        def save(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        def gradients(ctx, *grads):
            return tuple(backward(*grads, *ctx.saved_tensors))

        self.register_autograd(gradients, setup_context=save)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As of torch's custom operators: the gradient of each input, of a list as a list."""
        self.definition.register_autograd(backward, setup_context=setup_context)
        body, gives_list = self._body, self._gives_list

        def forward(ctx: Any, sizes: Sequence[int | None], *flat: Any) -> Any:
            inputs = _gathered(sizes, flat)
            output = body(*inputs)
            ctx.sizes_of_inputs = sizes
            # of a list, a gradient that nobody asks for is None
            ctx.set_materialize_grads(not gives_list)
            setup_context(ctx, inputs, output)
            return tuple(output) if gives_list else output

        def take_back(ctx: Any, *grads: Tensor | None) -> Any:
            found = backward(ctx, list(grads)) if gives_list else backward(ctx, *grads)
            return None, *_flat(ctx.sizes_of_inputs, found if isinstance(found, tuple) else (found,))

        # its name stands in graphs of gradients
        methods = {"forward": staticmethod(forward), "backward": staticmethod(take_back)}
        name = self.definition._opoverload._schema.name.replace("::", "_")
        self._function = types.new_class(name, (torch.autograd.Function,), exec_body=lambda room: room.update(methods))


def custom_operator(name: str, **options: Any) -> Callable[[Callable[..., Any]], Operator]:
    """Return a decorator: `torch.library.custom_op`, as an `Operator`."""
    return lambda body: Operator(body, torch.library.custom_op(name, body, **options))


def _is_watched(tensors: Iterable[Tensor]) -> bool:
    """Return whether torch's dispatcher has more to do with a call than to make it: counting, compiling, recording."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.autograd._profiler_enabled()
        or torch.jit.is_tracing()
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta for tensor in tensors)
    )


def _tensors_of(inputs: Iterable[Any]) -> Iterator[Tensor]:
    for part in inputs:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, list | tuple):
            yield from (inner for inner in part if isinstance(inner, Tensor))


def _flat(sizes: Sequence[int | None], parts: Sequence[Any]) -> Iterator[Any]:
    """The parts, and in the place of each that is a list of a size, or None for all of it, its own."""
    for size, part in zip(sizes, parts, strict=True):
        if size is None:
            yield part
        else:
            yield from [None] * size if part is None else part


def _gathered(sizes: Sequence[int | None], flat: Sequence[Any]) -> tuple[Any, ...]:
    """Return what `_flat` was given."""
    rest = iter(flat)
    return tuple(next(rest) if size is None else [next(rest) for _ in range(size)] for size in sizes)


def new_like(tensor: Tensor) -> Tensor:
    """Return an empty tensor of the same shape, contiguous whatever `tensor` is: kernels fill new arrays."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def product_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the precision that autocast gives the inputs of a matrix product, None where it is off."""
    device = tensor.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else None


# below so many numbers NumPy is faster than a call of compiled code
FEW = 1 << 13


def count_events(spikes: Tensor) -> tuple[int, int]:
    """Return how many numbers are not 0, and how many unit spikes they are: the sum of their magnitudes.

    On the CPU in a small part of the time that torch takes.
    """
    if spikes.device.type != "cpu" or spikes.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return int(spikes.count_nonzero()), int(spikes.abs().sum(dtype=torch.float64))
    if spikes.numel() >= FEW and spikes.dtype != torch.float64:
        # loaded with the first kernel
        from .events import count_compiled

        return count_compiled(spikes)
    array = (spikes.float() if spikes.dtype == torch.bfloat16 else spikes).detach().numpy()
    return int(np.count_nonzero(array)), int(np.abs(array).sum(dtype=np.float64))


def declare_cost(overload: Any, op_cost: Callable[[tuple, dict, Any], dict[str, int | str]]) -> None:
    """Let the operator `overload` say what a call of it computes; dispatch-mode counters ask for `op_cost`."""
    overload.op_cost = op_cost


def flatten(options: "DataclassInstance") -> tuple[Any, ...]:
    """Return the fields of `options`, in order."""
    return tuple(vars(options).values())


@functools.lru_cache(maxsize=256)
def rebuild(kind: type[Options], values: tuple[Any, ...]) -> Options:
    """Return the options of class `kind` that `flatten` made `values` of, checked the first time."""
    return kind(**dict(zip(kind.__dataclass_fields__, values, strict=True)))
