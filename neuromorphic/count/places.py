"""What the counter knows of a module before it runs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from .recurrent import has_state_cost

CostFunction = Callable[[tuple, Mapping[str, Any], Any], Mapping[str, Any]]


class Place(NamedTuple):
    """The path of a module, and how its state is declared."""

    where: str
    # a copy of a module has its hooks as well, and is another one
    identity: int
    is_recurrent: bool
    # its cost function, if it has one; what is in `recurrent.py` counts only where nothing around it is declared
    cost: CostFunction | None
    is_declared: bool

    @classmethod
    def of(cls, where: str, module: nn.Module) -> "Place":
        own: Any = module.op_cost if hasattr(type(module), "op_cost") else None
        is_declared = own is not None or has_state_cost(module)
        return cls(where, id(module), isinstance(module, nn.RNNBase), own, is_declared)
