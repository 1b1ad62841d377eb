"""Rows of int8 weights times spikes, added up in whole numbers: four rows by one instruction, where a processor has it.

VPDPBUSD multiplies four pairs of an unsigned and a signed byte and adds the products to a sum of 32 bits. Its signed
bytes are the spikes of four rows. Weights become unsigned by 128 more, and the spikes times 128 are taken off the sums:
so every sum is exact, and is what the sums of sums.py are, for these are exact as long as they stay below 2 ** 24.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from .fetching import AHEAD, fetch
from .processor import has_features

# columns of a register of bytes; runs of fewer than two of them are no faster than one number at a time
BLOCK = 64
# rows of one instruction, and the numbers of 32 bits in a register
ROWS, LANES = 4, 16
_BYTE, _WORD, _INDEX = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_SUMS = ir.VectorType(_WORD, LANES)


def has_dots() -> bool:
    """Return whether compiled code may use VPDPBUSD on whole registers of AVX-512."""
    return has_features("avx512vnni", "avx512bw")


def _places(places):
    return ir.Constant(ir.VectorType(_WORD, len(places)), list(places))


def _interleaved(builder, one, other, size, upper):
    """Take turns between the lower or the upper halves of each 16 bytes of two registers, `size` bytes at a time."""
    kind = ir.VectorType(ir.IntType(8 * size), BLOCK // size)
    one, other = builder.bitcast(one, kind), builder.bitcast(other, kind)
    each, places = 16 // size, []
    for start in range(upper * each // 2, BLOCK // size, each):
        for place in range(start, start + each // 2):
            places += [place, BLOCK // size + place]
    return builder.shuffle_vector(one, other, _places(places))


def _splat(builder, word):
    vector = builder.insert_element(ir.Constant(_SUMS, ir.Undefined), word, _WORD(0))
    return builder.shuffle_vector(vector, vector, _places([0] * LANES))


def _dotting(blocks: int) -> Any:
    """Return an intrinsic that sums so many blocks of columns."""

    @intrinsic
    def dot_columns(typing_context, weights, active, amount, n, column, out, start):
        """out[start:] = amount[:n] @ weights[active[:n], column:], of `blocks` blocks of columns."""

        def generate(context, builder, signature, arguments):
            kinds, (n, column, start) = signature.args, (arguments[place] for place in (3, 4, 6))
            rows, indices, amounts, sums = (
                context.make_array(kinds[place])(context, builder, arguments[place]) for place in (0, 1, 2, 5)
            )
            real = context.get_value_type(kinds[2].dtype)
            # of a block: columns 16 i + 4 j to 16 i + 4 j + 3 are the i-th four lanes of sums j
            totals = [
                [cgutils.alloca_once_value(builder, ir.Constant(_SUMS, [0] * LANES)) for _ in range(ROWS)]
                for _ in range(blocks)
            ]
            spikes = cgutils.alloca_once_value(builder, _WORD(0))
            width, first = builder.extract_value(rows.shape, 1), builder.gep(rows.data, [column])
            kind = ir.FunctionType(_SUMS, [_SUMS] * 3)
            dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")

            def row_of(place):
                at = builder.zext(builder.load(builder.gep(indices.data, [place])), _INDEX)
                return builder.gep(first, [builder.mul(at, width)])

            def if_listed(place, other):
                return builder.select(builder.icmp_unsigned("<", place, n), place, other)

            turns = builder.udiv(builder.add(n, n.type(ROWS - 1)), n.type(ROWS))
            with cgutils.for_range(builder, turns) as loop:
                begin, found, factors = builder.mul(loop.index, n.type(ROWS)), [], _WORD(0)
                for k in range(ROWS):
                    # what is missing of the last four are rows that are there, 0 times
                    place = builder.add(begin, n.type(k))
                    at = if_listed(place, begin)
                    found.append(row_of(at))
                    fetch(builder, row_of(if_listed(builder.add(place, n.type(AHEAD)), begin)), blocks * BLOCK)
                    factor = builder.fptosi(builder.load(builder.gep(amounts.data, [at])), _WORD)
                    factor = builder.select(builder.icmp_unsigned("<", place, n), factor, _WORD(0))
                    builder.store(builder.add(builder.load(spikes), factor), spikes)
                    byte = builder.shl(builder.and_(factor, _WORD(255)), _WORD(8 * k))
                    factors = builder.or_(factors, byte)
                factors = _splat(builder, factors)
                for block, sums_of_block in enumerate(totals):
                    bytes_kind = ir.VectorType(_BYTE, BLOCK)
                    read = []
                    for row in found:
                        pointer = builder.bitcast(builder.gep(row, [_INDEX(block * BLOCK)]), bytes_kind.as_pointer())
                        read.append(builder.xor(builder.load(pointer, align=1), bytes_kind([-128] * BLOCK)))
                    fours = []
                    for upper in (False, True):
                        one = _interleaved(builder, read[0], read[1], 1, upper)
                        other = _interleaved(builder, read[2], read[3], 1, upper)
                        fours += [_interleaved(builder, one, other, 2, half) for half in (False, True)]
                    for total, four in zip(sums_of_block, fours, strict=True):
                        added = builder.call(dot, [builder.load(total), builder.bitcast(four, _SUMS), factors])
                        builder.store(added, total)
            too_much = _splat(builder, builder.mul(builder.load(spikes), _WORD(128)))
            begin, few = builder.gep(sums.data, [start]), LANES // ROWS
            for block, sums_of_block in enumerate(totals):
                for j, total in enumerate(sums_of_block):
                    exact = builder.sub(builder.load(total), too_much)
                    reals = builder.sitofp(exact, ir.VectorType(real, LANES))
                    for i in range(few):
                        part = builder.shuffle_vector(reals, reals, _places(range(few * i, few * (i + 1))))
                        pointer = builder.gep(begin, [_INDEX(BLOCK * block + LANES * i + few * j)])
                        pointer = builder.bitcast(pointer, ir.VectorType(real, few).as_pointer())
                        builder.store(part, pointer, align=kinds[2].dtype.bitwidth // 8)
            return context.get_constant_null(types.none)

        return types.none(weights, active, amount, types.int64, types.int64, out, types.int64), generate

    return dot_columns


def sum_whole(weights, active, amount, listed, place, first, last, out, start):
    """Do what `sums.sum_rows` does for the first of the columns, in compiled code, and return the first one left.

    The amounts are whole numbers from -127 to 127. Of other weights than int8, and where the processor cannot, no
    column is done.
    """
    raise NotImplementedError


@overload(sum_whole)
def _sum_whole(weights, active, amount, listed, place, first, last, out, start):
    if weights.dtype != types.int8 or not has_dots():
        return lambda weights, active, amount, listed, place, first, last, out, start: first
    wide, narrow = 4 * BLOCK, 2 * BLOCK
    dot_wide, dot_narrow = _dotting(4), _dotting(2)

    def summed(weights, active, amount, listed, place, first, last, out, start):
        column = first
        while last - column >= narrow:
            is_wide = last - column >= wide
            for text in range(out.shape[0]):
                rows, factors, n = active[text, place], amount[text, place], listed[text, place]
                if is_wide:
                    dot_wide(weights, rows, factors, n, column, out[text], start + column)
                else:
                    dot_narrow(weights, rows, factors, n, column, out[text], start + column)
            column += wide if is_wide else narrow
        return column

    return summed
