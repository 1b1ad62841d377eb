"""Rows of weights that are asked for before they are read."""

from llvmlite import ir
from numba.core import cgutils

# rows of short words are asked for so many rows before they are read: a run of them is few bytes of each, and the
# processor does not find out by itself where the next one lies
AHEAD = 8


def fetch(builder, pointer, size):
    """Ask for so many bytes to be in the nearest memory when they are read."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    for line in range(0, size, 64):
        place = builder.gep(builder.bitcast(pointer, byte), [ir.IntType(64)(line)])
        builder.call(prefetch, [place, word(0), word(3), word(1)])
