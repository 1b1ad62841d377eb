"""Threads that share the work of a token: who does which columns, and where they wait for each other.

Every column is computed by one thread in one order, so results do not depend on the number of threads.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from ...kernels.compiling import compiled

# nothing is allocated and no array is kept beyond a call, so no reference is counted: with the dozens of arrays of a
# token that took longer than a small layer
fused = compiled(fastmath={"contract"}, _nrt=False)
# of what is short, and called for every head of every layer
inlined = compiled(fastmath={"contract"}, _nrt=False, forceinline=True)
# of sums whose order is the compiler's, several at a time; it is the same for every thread
summing = compiled(fastmath={"contract", "reassoc"}, _nrt=False)

# columns are shared out in runs of this many, so that two threads never write to one cache line
GRAIN = 16
# looks at the gate before a thread that waits sleeps: they take about as long as the shortest sleep
SPINS = 100_000
# arrivals at the gate that no meeting waits for
OPEN = 1 << 62


class Team(NamedTuple):
    """Thread `part` of `parts`; gate (1,) int64 counts the arrivals at meetings since the token began."""

    part: int
    parts: int
    gate: np.ndarray


@intrinsic
def _arrive(typing_context, gate):
    """Add one to gate[0] and return its new value, seen by all threads."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        one = context.get_constant(types.int64, 1)
        return builder.add(builder.atomic_rmw("add", array.data, one, "seq_cst"), one)

    return types.int64(gate), generate


@intrinsic
def _look(typing_context, gate):
    """Return gate[0] as the other threads left it."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load_atomic(array.data, "seq_cst", 8)

    return types.int64(gate), generate


@intrinsic
def _sleep(typing_context):
    """Leave this core for a moment: the thread that is awaited may need it, and gets it sooner from one that sleeps.

    One that only yields goes on using up its share of a busy machine.
    """

    def generate(context, builder, signature, arguments):
        from llvmlite import ir

        microseconds = ir.IntType(32)
        kind = ir.FunctionType(ir.IntType(32), [microseconds])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "usleep"), [microseconds(1)])

    return types.int32(), generate


# what numba passes to an intrinsic first, its callers do not: hidden from type checkers
arrive: Any = _arrive
look: Any = _look
sleep: Any = _sleep


@fused
def meet(team, meetings):
    """Wait until all parts have come to their `meetings`-th meeting, and return the number of the next one."""
    if team.parts == 1:
        return meetings
    arrive(team.gate)
    spins = 0
    while look(team.gate) < meetings * team.parts:
        spins += 1
        if spins > SPINS:
            sleep()
    return meetings + 1


@fused
def columns(width, team):
    """Return the first and the last-but-one column of `team.part`."""
    runs = (width + GRAIN - 1) // GRAIN
    return min(runs * team.part // team.parts * GRAIN, width), min(runs * (team.part + 1) // team.parts * GRAIN, width)
