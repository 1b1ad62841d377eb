"""How torch shows what it runs: the dispatch mode, and what can be asked of one operator. Nothing is counted here."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from . import moves


class OperatorMode(TorchDispatchMode):
    """Shows every operator that is no view to `observe(operator, args, kwargs, output)`, after it has run.

    `overlook(operator, output)` hears of those that run others and do not let them be seen. The observer's own work is
    seen by nobody: see `unseen`.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        observe: Callable[[OpOverload, tuple, dict, Any], None],
        overlook: Callable[[HigherOrderOperator, Any], None],
    ):
        super().__init__()
        self.observe, self.overlook = observe, overlook

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._run_bodies(func, args, kwargs)
        if any(map(_is_wrapper, types)):
            # a wrapper says itself what it is made of, and is then seen operator by operator
            return NotImplemented
        if _is_composite(func) and not hasattr(func, "op_cost") and not _is_nested(args):
            # inference_mode shows operators that are made of others;
            # everywhere else torch shows the parts, which have the rules
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        output = func(*args, **kwargs)
        # a view has the memory, and so the provenance, of what it shows; a number of the program gets its own
        if not func.is_view or operator_name(func) in moves.LIFTS:
            with unseen():
                self.observe(func, args, kwargs, output)
        return output

    def _run_bodies(self, func: HigherOrderOperator, args: tuple, kwargs: dict) -> Any:
        """Run cond, while_loop, scan, map, flex_attention and their like with what they call in sight."""
        eager = torch._C.DispatchKey.CompositeExplicitAutograd
        if func.name() == "flex_attention" and eager in func.py_kernels:
            with self:
                return func.dispatch(eager, *args, **kwargs)
        bodies = 0

        def watched(leaf: Any) -> Any:
            nonlocal bodies
            if isinstance(leaf, Tensor) or not callable(leaf):
                return leaf
            bodies += 1

            def body(*arguments: Any, **options: Any) -> Any:
                with self:
                    return leaf(*arguments, **options)

            return body

        output = func(*tree_map(watched, args), **tree_map(watched, kwargs))
        if not bodies:
            with unseen():
                self.overlook(func, output)
        return output


def _is_nested(args: tuple) -> bool:
    """True for operators of nested tensors, which have kernels where others are made of parts."""
    return any(isinstance(argument, Tensor) and argument.is_nested for argument in args)


def unseen() -> AbstractContextManager:
    """Within this block no dispatch mode sees operators: they are the observer's own, and no part of the model."""
    return torch._C._DisableTorchDispatch()


@functools.cache
def _is_wrapper(kind: type) -> bool:
    """True for a class of tensors that says itself what its operators do."""
    return getattr(kind, "__torch_dispatch__", None) is not torch._C._disabled_torch_dispatch_impl


def tensors_in(*trees: Any) -> list[Tensor]:
    """Return the tensors in arguments and results, which are flat but for tuples and lists."""
    found: list[Tensor] = []
    for tree in trees:
        if isinstance(tree, Tensor):
            found.append(tree)
        elif isinstance(tree, tuple | list):
            found += tensors_in(*tree)
        elif isinstance(tree, dict):
            found += tensors_in(*tree.values())
    return found


def without_tensors(arguments: Any) -> Any:
    """Return arguments, which are nested tuples, lists and dictionaries, with None for every tensor."""
    if isinstance(arguments, Tensor):
        return None
    if isinstance(arguments, tuple | list):
        return [without_tensors(argument) for argument in arguments]
    if isinstance(arguments, dict):
        return {name: without_tensors(argument) for name, argument in arguments.items()}
    return arguments


def is_backward() -> bool:
    """True while autograd runs a backward pass."""
    return torch._C._current_graph_task_id() != -1


@functools.cache
def _is_composite(func: OpOverload) -> bool:
    """True if the operator is made of others and has no kernel of its own."""
    keys = torch._C.DispatchKey
    return func.has_kernel_for_dispatch_key(keys.CompositeImplicitAutograd) and not any(
        map(func.has_kernel_for_dispatch_key, (keys.CPU, keys.CUDA))
    )


def mutated(func: OpOverload, args: tuple, kwargs: dict) -> list[Tensor]:
    """Return the tensors that the operator writes to."""
    written = _written(func)
    if not written:
        return []
    return tensors_in(*(args[place] if place < len(args) else kwargs.get(name) for place, name in written))


@functools.cache
def _written(func: OpOverload) -> tuple[tuple[int, str], ...]:
    """(place, name) of the arguments that the operator writes to."""
    if not func._schema.is_mutable:
        return ()
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    )


def named_arguments(func: OpOverload, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Return the arguments of a call by the names of the schema, with the defaults of those that were not given."""
    named = dict(_defaults(func))
    return named | dict(zip(named, args, strict=False)) | kwargs


@functools.cache
def _defaults(func: OpOverload) -> tuple[tuple[str, Any], ...]:
    return tuple((argument.name, argument.default_value) for argument in func._schema.arguments)


@functools.cache
def operator_name(func: OpOverload) -> str:
    """Return the operator without namespace, overload and the _ of its in-place form."""
    name = func._schema.name.split("::")[1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
