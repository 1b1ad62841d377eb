"""A held value: what compiled code sees is the arrays of the value themselves."""

from typing import NamedTuple

import numpy as np

from spikegpt.generate.compiled.held import Held, held_value
from spikegpt.generate.compiled.team import fused


class Inner(NamedTuple):
    numbers: np.ndarray
    scales: np.ndarray | None
    place: int


class Outer(NamedTuple):
    first: Inner
    second: Inner
    half: np.float32
    flag: bool


@fused
def read_and_write(held, step):
    value = held_value(held)
    total = value.first.place * 1000 + value.second.place * 100 + value.half
    for row in range(value.second.numbers.shape[0]):
        for column in range(value.second.numbers.shape[1]):
            value.second.numbers[row, column] += step
            total += value.first.numbers[column]
    return total if value.flag and value.first.scales is None else -total


def make_value(flag: bool) -> Outer:
    columns = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    inner = Inner(np.array([1.0, 2.0, 4.0]), None, 3), Inner(columns, np.ones(2), 5)
    return Outer(*inner, np.float32(0.5), flag)


def test_compiled_code_reads_and_writes_the_arrays_of_the_value():
    value = make_value(True)
    held = Held(value)
    # 3000 + 500 + 0.5 + two rows of 1 + 2 + 4
    assert read_and_write(held, 1.0) == 3514.5
    assert read_and_write(held, 0.5) == 3514.5
    assert value.second.numbers.tolist() == [[1.5, 3.5, 5.5], [7.5, 9.5, 11.5]]


def test_values_of_one_type_do_not_mix():
    one, other = Held(make_value(True)), Held(make_value(False))
    assert read_and_write(one, 1.0) == 3514.5
    assert read_and_write(other, 1.0) == -3514.5
    assert other.value.second.numbers[0, 0] == one.value.second.numbers[0, 0] == 1.0


def test_the_arrays_live_as_long_as_the_held_value():
    held = [Held(make_value(True)) for _ in range(50)]
    noise = [np.full(64, np.nan) for _ in range(2000)]
    assert all(read_and_write(one, 0.0) == 3514.5 for one in held)
    assert len(noise) == 2000
