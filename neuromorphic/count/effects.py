"""One call of an operator, and what a call of its structure does whenever it comes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from . import structured
from .counts import Counts, Site
from .provenance import Origin
from .row_products import RowProducts
from .spikes import CASTS
from .storages import Member, version


class Call:
    """One call of an operator: all that its effect follows from, its operands and the memory of each, its results."""

    __slots__ = ("func", "lowest", "memories", "operands", "results", "signature")

    def __init__(self, func: OpOverload):
        self.func, self.lowest = func, Origin.WEIGHT
        self.signature: list[Any] = [id(func)]
        self.operands: list[Tensor] = []
        self.memories: list[int] = []
        self.results: list[Tensor] = []


class Effect:
    """What one structure does whenever it comes, and how often it has come since it was last added up."""

    def __init__(self) -> None:
        self.times = 0
        self.parts: list[tuple[Site, Counts]] = []
        # what is known of the memory of each result, and of its spikes; empty where nothing is
        self.made: list[tuple[Member | None, Member | None]] = []
        # how many numbers of the first result are new; None where nobody follows what becomes of them
        self.new: int | None = None
        # an operator that declares its cost does so each time
        self.cost: Callable | None = None
        # the products of rows; which operands the rows and the weight are; how many numbers are in the rows
        self.rows: RowProducts | None = None
        self.row = self.weight = self.numbers = 0
        # of the weight, in the form in which this call is given it: a view that inference mode makes of it knows none
        self.version: int | None = None
        # where the row counts as spikes that a neuron has emitted, how many these were, and what they repeat as units
        self.emitted: Site | None = None
        self.events = self.repeated = 0
        # the host may go another way, depending on the number that it is told
        self.tells_number = False

    def is_usable(self, call: Call) -> bool:
        return self.rows is None or (not self.rows.is_closed and version(call.operands[self.weight]) == self.version)


class Whole:
    """A call of an operator that is made of others, while these run: their effects, each with the memory of its row."""

    def __init__(self, call: Call | None):
        self.call = call
        self.effects: list[tuple[Effect | None, int]] = []


def looks_at_numbers(name: str, call: Call, origin: Origin) -> bool:
    """True for calls of operators whose cost may depend on the numbers in their operands, beside BY_VALUE."""
    is_float = any(operand.is_floating_point() for operand in call.operands)
    if name in CASTS:
        # small whole numbers are spikes
        return is_float and not all(result.is_floating_point() for result in call.results)
    if name == "div":
        return "rounding_mode" in call.signature
    # which rows of a weight are needed
    return name in structured.GATHERS and origin is Origin.DATA
