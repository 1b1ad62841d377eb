"""The list of the inputs of a product that are not zero: a vector register of them at a time, or one by one."""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from .processor import has_features
from .team import fused

REGISTER_BYTES = 64
COMPRESS = "llvm.experimental.vector.compress"
FIRST_LLVM = 19


@intrinsic
def _compress(typing_context, values, start, active, amount, n):
    """Append the nonzeros of a register of `values` from `start` on to a list of `n`; return how many there are then.

    A whole register is written behind the list, which has room for it where n <= start.
    """

    def generate(context, builder, signature, arguments):
        arrays = [context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 3)]
        number = context.get_value_type(signature.args[0].dtype)
        bytes_each = signature.args[0].dtype.bitwidth // 8
        lanes, start, n = REGISTER_BYTES // bytes_each, arguments[1], arguments[4]
        index = ir.IntType(32)
        numbers, indices, bits = ir.VectorType(number, lanes), ir.VectorType(index, lanes), ir.IntType(lanes)

        def place(array, at, vector):
            return builder.bitcast(builder.gep(array.data, [at]), vector.as_pointer())

        def compress(vector, name):
            kind = ir.FunctionType(vector.type, [vector.type, mask.type, vector.type])
            function = cgutils.get_or_insert_function(builder.module, kind, f"{COMPRESS}.v{lanes}{name}")
            return builder.call(function, [vector, mask, ir.Constant(vector.type, ir.Undefined)])

        found = builder.load(place(arrays[0], start, numbers), align=bytes_each)
        # unordered: NaN is no zero
        mask = builder.fcmp_unordered("!=", found, ir.Constant(numbers, [0.0] * lanes))
        first = builder.insert_element(ir.Constant(indices, ir.Undefined), builder.trunc(start, index), index(0))
        first = builder.shuffle_vector(first, first, ir.Constant(indices, [0] * lanes))
        where = builder.add(first, ir.Constant(indices, list(range(lanes))))
        builder.store(compress(where, "i32"), place(arrays[1], n, indices), align=4)
        builder.store(compress(found, f"f{bytes_each * 8}"), place(arrays[2], n, numbers), align=bytes_each)
        listed = builder.ctpop(builder.bitcast(mask, bits))
        return builder.add(n, builder.zext(listed, ir.IntType(64)))

    return types.int64(values, types.int64, active, amount, types.int64), generate


# what numba passes to an intrinsic first, its callers do not: hidden from type checkers
compress: Any = _compress


def list_registers(values, active, amount):
    """List the nonzeros of as many whole registers as there are; return how many, and where the rest begins."""
    raise NotImplementedError


@overload(list_registers)
def _list_registers(values, active, amount):
    if not compresses():
        return lambda values, active, amount: (0, 0)

    def listed(values, active, amount):
        n = start = 0
        lanes = REGISTER_BYTES // values.itemsize
        while start + lanes <= values.size:
            n = compress(values, start, active, amount, n)
            start += lanes
        return n, start

    return listed


def compresses() -> bool:
    """Return whether this processor has an instruction for it; without one it is twice as slow as one by one."""
    return has_features("avx512f") and llvmlite.binding.llvm_version_info[0] >= FIRST_LLVM


@fused
def list_active(values, active, amount):
    """Write the indices and the values of the nonzeros of `values` and return how many there are."""
    n, start = list_registers(values, active, amount)
    for c in range(start, values.size):
        active[n], amount[n] = c, values[c]
        n += values[c] != 0
    return n
