"""How torch shows what it runs: the dispatch mode, and what can be asked of one operator. Nothing is counted here."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class OperatorMode(TorchDispatchMode):
    """Shows every operator that is no view to `observe(operator, args, kwargs, output)`, after it has run."""

    def __init__(self, observe: Callable[[OpOverload, tuple, dict, Any], None]):
        super().__init__()
        self.observe = observe
        self._looks_away = False

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Within this block operators are the observer's own: hooks run inside the model."""
        self._looks_away = True
        try:
            yield
        finally:
            self._looks_away = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._looks_away:
            return func(*args, **kwargs)
        if _is_composite(func) and not hasattr(func, "op_cost"):
            # inference_mode shows operators that are made of others;
            # everywhere else torch shows the parts, which have the rules
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        output = func(*args, **kwargs)
        # a view has the memory, and so the provenance, of what it shows
        if not func.is_view:
            self.observe(func, args, kwargs, output)
        return output


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


def without_tensors(args: tuple, kwargs: dict) -> Any:
    """Return the arguments with None for every tensor."""
    return tree_map(lambda leaf: None if isinstance(leaf, Tensor) else leaf, (args, kwargs))


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
    if not func._schema.is_mutable:
        return []
    by_name = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    return tensors_in(
        *(
            by_name.get(argument.name)
            for argument in func._schema.arguments
            if argument.alias_info and argument.alias_info.is_write
        )
    )


@functools.cache
def operator_name(func: OpOverload) -> str:
    """Return the operator without namespace, overload and the _ of its in-place form."""
    name = func._schema.name.split("::")[1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
