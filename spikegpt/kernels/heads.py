"""What the fast CPU kernels share whose state is a matrix for each head: rows, and matrices of few of them.

One task is one head of one text, whose matrix stays in the first-level cache.
"""

import numpy as np

from .compiling import compiled
from .cpu import exp_nonpositive, read, write

# heads are padded with zeros to a multiple of this, so that inner loops are whole vectors
LANES = 16

# sums along a row may be added in any order: else they are no vector instructions
inlined = compiled(fastmath={"contract", "reassoc"}, forceinline=True)
task = compiled(fastmath={"contract", "reassoc"})


# Inner loops write one row each: where they wrote several, the compiler could not tell their memory apart, and made no
# vector instructions of them.


@inlined
def take(numbers, x):
    for j in range(numbers.size):
        x[j] = read(numbers[j])


@inlined
def exp_of(exponents, x):
    for j in range(exponents.size):
        x[j] = exp_nonpositive(exponents[j])


@inlined
def give(x, numbers):
    for j in range(numbers.size):
        write(numbers, j, x[j])


@inlined
def multiply_by(factors, x):
    for j in range(x.size):
        x[j] *= factors[j]


@inlined
def dot_rows(matrix, vector, products):
    """Write the products of four rows at a time with the vector, which is loaded once for them."""
    for i in range(0, matrix.shape[0], 4):
        sum0 = sum1 = sum2 = sum3 = np.float32(0)
        for j in range(vector.size):
            sum0 += matrix[i, j] * vector[j]
            sum1 += matrix[i + 1, j] * vector[j]
            sum2 += matrix[i + 2, j] * vector[j]
            sum3 += matrix[i + 3, j] * vector[j]
        products[i], products[i + 1], products[i + 2], products[i + 3] = sum0, sum1, sum2, sum3


@inlined
def sum_rows(matrix, factors, total):
    """Write the sum of the rows, each times its factor, four at a time."""
    total[:] = 0
    for i in range(0, matrix.shape[0], 4):
        factor0, factor1, factor2, factor3 = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        row0, row1, row2, row3 = matrix[i], matrix[i + 1], matrix[i + 2], matrix[i + 3]
        for j in range(total.size):
            total[j] += factor0 * row0[j] + factor1 * row1[j] + factor2 * row2[j] + factor3 * row3[j]


@inlined
def add_outer(matrix, factors, vector):
    for i in range(matrix.shape[0]):
        row, factor = matrix[i], factors[i]
        for j in range(row.size):
            row[j] += factor * vector[j]
