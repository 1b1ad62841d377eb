"""How torch shows what it runs: the dispatch mode, and what can be asked of one operator. Nothing is counted here."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum, auto
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from . import moves

AUTOCAST_KEYS = (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA)


class Way(Enum):
    """How an operator is seen."""

    WORK = auto()
    # what shows a memory has its provenance; but a number of the program that is lifted into a tensor gets its own
    VIEW = auto()
    # it is made of other operators and has no kernel
    PARTS = auto()
    # of higher order: it calls functions
    BODIES = auto()


class Wholes(Protocol):
    """Hears of operators that are made of others; `begin` says whether one may run as a whole."""

    def begin(self, func: OpOverload, args: tuple, kwargs: dict, may_be_whole: bool) -> bool: ...

    def end(self, output: Any) -> None: ...

    def fail(self) -> None: ...


class OperatorMode(TorchDispatchMode):
    """Shows every operator that is no view to `observe(operator, args, kwargs, output)`, after it has run.

    `overlook(operator, output)` hears of those that run others and do not let them be seen. What the observer itself
    computes with tensors must be `unseen`.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        observe: Callable[[OpOverload, tuple, dict, Any], None],
        overlook: Callable[[HigherOrderOperator, Any], None],
        wholes: Wholes,
    ):
        super().__init__()
        self.observe, self.overlook, self.wholes = observe, overlook, wholes
        self._ways: dict[int, tuple[OpOverload | HigherOrderOperator, Way]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # operators are never freed, and have a hash of their own that takes longer than this
        known = self._ways.get(id(func))
        if known is None:
            known = self._ways[id(func)] = func, _way(func)
        way = known[1]
        if way is Way.BODIES:
            return self._run_bodies(func, args, kwargs)
        if types and any(map(_is_wrapper, types)):
            # a wrapper says itself what it is made of, and is then seen operator by operator
            return NotImplemented
        if way is Way.PARTS and not hasattr(func, "op_cost") and not _is_nested(args):
            # inference_mode shows operators that are made of others;
            # everywhere else torch shows the parts, which have the rules
            return self._run_parts(func, args, kwargs)
        output = func(*args, **kwargs)
        if way is not Way.VIEW:
            self.observe(func, args, kwargs, output)
        return output

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's wrapper that keeps its compiler out costs as much as an operator; the counter keeps it out itself."""
        return False

    def _run_parts(self, func: OpOverload, args: tuple, kwargs: dict) -> Any:
        """Run an operator with those that it is made of in sight, or as a whole where that tells nothing new."""
        is_cast, is_done = _is_autocast(), False
        # one of others' may do more than its parts show, and autocast decides anew what they are cast to
        is_whole = self.wholes.begin(func, args, kwargs, func.namespace == "aten" and not is_cast)
        try:
            output = func(*args, **kwargs) if is_whole else self._run_in_sight(func, args, kwargs, is_cast)
            is_done = True
        finally:
            if not is_done:
                self.wholes.fail()
        self.wholes.end(output)
        return output

    def _run_in_sight(self, func: OpOverload, args: tuple, kwargs: dict, is_cast: bool) -> Any:
        with torch._C._PreserveDispatchKeyGuard() if is_cast else nullcontext():
            # whoever is called by a dispatch mode is behind autocast, but the parts would have met it
            for key in AUTOCAST_KEYS if is_cast else ():
                torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
            torch._C._push_on_torch_dispatch_stack(self)
            try:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
            finally:
                torch._C._pop_torch_dispatch_stack(None)

    def _run_bodies(self, func: HigherOrderOperator, args: tuple, kwargs: dict) -> Any:
        """Run cond, while_loop, scan, map, flex_attention and their like with what they call in sight."""
        eager = torch._C.DispatchKey.CompositeExplicitAutograd
        # an operator among the arguments is called by its name alone
        is_operator = any(isinstance(argument, OpOverload) for argument in args)
        if (is_operator or func.name() == "flex_attention") and eager in func.py_kernels:
            with self:
                return func.dispatch(eager, *args, **kwargs)
        bodies = 0

        def watched(leaf: Any) -> Any:
            nonlocal bodies
            if isinstance(leaf, Tensor | OpOverload) or not callable(leaf):
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


def _is_autocast() -> bool:
    """True if autocast is on where the operator was called: a dispatch mode is called behind it."""
    # whose stubs do not know this guard
    torch_core: Any = torch._C
    with torch_core._RestorePythonTLSSnapshot():
        return torch_core._is_any_autocast_enabled()


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


def _way(func: OpOverload | HigherOrderOperator) -> Way:
    if isinstance(func, HigherOrderOperator):
        return Way.BODIES
    keys = torch._C.DispatchKey
    is_composite = func.has_kernel_for_dispatch_key(keys.CompositeImplicitAutograd)
    if is_composite and not any(map(func.has_kernel_for_dispatch_key, (keys.CPU, keys.CUDA))):
        return Way.PARTS
    return Way.VIEW if func.is_view and operator_name(func) not in moves.LIFTS else Way.WORK


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
    """Return the operator of torch without overload and the _ of its in-place form; others' keep their namespace."""
    if func.namespace != "aten":
        # it does what it likes, whatever it is called
        return func._schema.name
    name = func._schema.name.split("::")[1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
