"""Rows of weights times amounts, added up in registers: a run of columns, row after row, for one text after the other.

A run of columns is read for every text before the next one is: what several texts have in common is read from far
memory once. A column is summed in one order, row by row, whatever the run it is in and however many texts there are.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from .dots import sum_whole
from .fetching import AHEAD, fetch
from .processor import has_features


def _as_real(builder, words, real):
    """Return stored weights as numbers to calculate with: bfloat16 is kept as its 16 bits, int8 without its scale."""
    lanes, reals = words.type.count, ir.VectorType(real, words.type.count)
    if words.type.element == real:
        return words
    if words.type.element == ir.IntType(16):
        wide = ir.VectorType(ir.IntType(32), lanes)
        return builder.bitcast(builder.shl(builder.zext(words, wide), ir.Constant(wide, [16] * lanes)), reals)
    return builder.sitofp(words, reals)


def _summing(registers: int, lanes: int) -> Any:
    """Return an intrinsic that sums so many registers of so many columns."""

    @intrinsic
    def sum_columns(typing_context, weights, active, amount, n, column, out, start):
        """out[start:] = amount[:n] @ weights[active[:n], column:], as many columns as fit into the registers."""

        def generate(context, builder, signature, arguments):
            kinds, (n, column, start) = signature.args, (arguments[place] for place in (3, 4, 6))
            rows, indices, amounts, sums = (
                context.make_array(kinds[place])(context, builder, arguments[place]) for place in (0, 1, 2, 5)
            )
            stored, real = (context.get_value_type(kinds[place].dtype) for place in (0, 2))
            vector, index, size = ir.VectorType(real, lanes), ir.IntType(32), kinds[0].dtype.bitwidth // 8
            is_short = kinds[0].dtype.bitwidth < kinds[2].dtype.bitwidth
            totals = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * lanes)) for _ in range(registers)]
            width, first = builder.extract_value(rows.shape, 1), builder.gep(rows.data, [column])

            def register(pointer, k, kind):
                kind = ir.VectorType(kind, lanes).as_pointer()
                return builder.bitcast(builder.gep(pointer, [n.type(k * lanes)]), kind)

            def row_of(place):
                at = builder.zext(builder.load(builder.gep(indices.data, [place])), n.type)
                return builder.gep(first, [builder.mul(at, width)])

            with cgutils.for_range(builder, n) as loop:
                row, later = row_of(loop.index), builder.add(loop.index, n.type(AHEAD))
                if is_short:
                    is_there = builder.icmp_unsigned("<", later, n)
                    fetch(builder, row_of(builder.select(is_there, later, loop.index)), registers * lanes * size)
                factor = builder.load(builder.gep(amounts.data, [loop.index]))
                factor = builder.insert_element(ir.Constant(vector, ir.Undefined), factor, index(0))
                factor = builder.shuffle_vector(factor, factor, ir.Constant(ir.VectorType(index, lanes), [0] * lanes))
                for k, total in enumerate(totals):
                    words = builder.load(register(row, k, stored), align=kinds[0].dtype.bitwidth // 8)
                    term = builder.fmul(factor, _as_real(builder, words, real), flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), term, flags=("contract",)), total)
            found = builder.gep(sums.data, [start])
            for k, total in enumerate(totals):
                place = register(found, k, real)
                builder.store(builder.load(total), place, align=kinds[2].dtype.bitwidth // 8)
            return context.get_constant_null(types.none)

        return types.none(weights, active, amount, types.int64, types.int64, out, types.int64), generate

    return sum_columns


def registers() -> tuple[int, int]:
    """Return how many registers of sums this processor holds beside what it needs else, and the bytes of one."""
    return (16, 64) if has_features("avx512f") else (8, 32)


def sum_rows(weights, is_whole, active, amount, listed, place, first, last, out, start):
    """out[:, start:][:, first:last] = (inputs @ weights)[:, first:last], of the `listed` inputs in `place`, in compiled
    code.

    weights (in, out) C-contiguous; active, amount (texts, LISTS, widest + 1), listed (texts, LISTS). `is_whole` says
    that the amounts are spikes, which `dots` may count in whole numbers.
    """
    raise NotImplementedError


@overload(sum_rows)
def _sum_rows(weights, is_whole, active, amount, listed, place, first, last, out, start):
    most, size = registers()
    lanes = size * 8 // amount.dtype.bitwidth
    wide, narrow = most * lanes, most // 4 * lanes
    sum_wide, sum_narrow = _summing(most, lanes), _summing(most // 4, lanes)
    sum_register, sum_one = _summing(1, lanes), _summing(1, 1)

    def summed(weights, is_whole, active, amount, listed, place, first, last, out, start):
        column = first
        if is_whole:
            column = sum_whole(weights, active, amount, listed, place, first, last, out, start)
        while column < last:
            left = last - column
            for text in range(out.shape[0]):
                rows, factors, n = active[text, place], amount[text, place], listed[text, place]
                if left >= wide:
                    sum_wide(weights, rows, factors, n, column, out[text], start + column)
                elif left >= narrow:
                    sum_narrow(weights, rows, factors, n, column, out[text], start + column)
                elif left >= lanes:
                    sum_register(weights, rows, factors, n, column, out[text], start + column)
                else:
                    sum_one(weights, rows, factors, n, column, out[text], start + column)
            column += wide if left >= wide else narrow if left >= narrow else lanes if left >= lanes else 1

    return summed
