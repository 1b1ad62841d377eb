"""Where the time of a token goes: marks in the token step, which are nothing where no clock was handed in."""

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic, overload

# what a mark says has been done since the one before; after these come the products, by their places
PARTS = ("norm", "token shift and neurons", "lists", "wkv", "gate", "hidden", "sums", "meetings", "drawing")
NORM, NEURONS, LISTS, WKV, GATE, HIDDEN, SUMS, MEETINGS, DRAWING, PRODUCTS = range(len(PARTS) + 1)


def new_clock(products: int) -> np.ndarray:
    """Return a clock (1 + parts,) int64: its last reading, and the ticks of every part so far."""
    return np.zeros(1 + PRODUCTS + products, np.int64)


@intrinsic
def _ticks(typing_context):
    """Return the processor's counter, whose ticks are of equal length."""

    def generate(context, builder, signature, arguments):
        from llvmlite import ir

        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", fnty=kind), [])

    return types.int64(), generate


ticks: Any = _ticks


def _start(clock):
    """Begin to measure, in compiled code; nothing if `clock` is None."""


@overload(_start, jit_options={"forceinline": True})
def _(clock):
    if isinstance(clock, types.NoneType):
        return lambda clock: None

    def start(clock):
        clock[0] = ticks()

    return start


def _mark(clock, part):
    """Add the ticks since the last mark to `part`, in compiled code; nothing if `clock` is None."""


@overload(_mark, jit_options={"forceinline": True})
def _(clock, part):
    if isinstance(clock, types.NoneType):
        return lambda clock, part: None

    def mark(clock, part):
        now = ticks()
        clock[1 + part] += now - clock[0]
        clock[0] = now

    return mark


start: Any = _start
mark: Any = _mark
