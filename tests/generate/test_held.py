"""A held value: what compiled code sees is the arrays of the value themselves."""

import numpy as np

from spikegpt.generate.compiled.held import Held, held_value
from spikegpt.generate.compiled.rows import Product
from spikegpt.generate.compiled.team import fused


@fused
def read_and_write(held, step):
    first, (second, half), flag = held_value(held)
    total = first.place * 1000 + second.place * 100 + half
    for row in range(second.weights.shape[0]):
        for column in range(second.weights.shape[1]):
            second.weights[row, column] += step
            total += first.weights[column]
    return total if flag and first.scales is None else -total


def make_value(flag: bool) -> tuple:
    every_other = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    first, second = Product(np.array([1.0, 2.0, 4.0]), None, 3, False), Product(every_other, np.ones(2), 5, True)
    return first, (second, np.float32(0.5)), flag


def weights_of(held: Held) -> list:
    return held.value[1][0].weights.tolist()


def test_compiled_code_reads_and_writes_the_arrays_of_the_value():
    held = Held(make_value(True))
    # 3000 + 500 + 0.5 + two rows of 1 + 2 + 4
    assert read_and_write(held, 1.0) == 3514.5
    assert read_and_write(held, 0.5) == 3514.5
    assert weights_of(held) == [[1.5, 3.5, 5.5], [7.5, 9.5, 11.5]]


def test_values_of_one_type_do_not_mix():
    one, other = Held(make_value(True)), Held(make_value(False))
    assert read_and_write(one, 1.0) == 3514.5
    assert read_and_write(other, 1.0) == -3514.5
    assert weights_of(one) == weights_of(other) == [[1, 3, 5], [7, 9, 11]]


def test_the_arrays_live_as_long_as_the_held_value():
    held = [Held(make_value(True)) for _ in range(50)]
    noise = [np.full(64, np.nan) for _ in range(2000)]
    assert all(read_and_write(one, 0.0) == 3514.5 for one in held)
    assert len(noise) == 2000
