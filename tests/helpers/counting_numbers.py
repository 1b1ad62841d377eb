"""Numbers that count what is done to them: what an operator costs, told by a loop over its definition.

They have no values. Conventions as in `neuromorphic/count/rules.py`: a sign flip is an addition, an absolute value or a
rounding a comparison, a reduction of n elements n operations.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class Real:
    """A real number; `done` is shared by all numbers of a call."""

    __slots__ = ("done",)

    def __init__(self, done: Counter):
        self.done = done

    def _did(self, operation: str) -> "Real":
        self.done[operation] += 1
        return self

    def __add__(self, other):
        return other + self if isinstance(other, Complex) else self._did("add")

    def __sub__(self, other):
        return self._did("add")

    def __mul__(self, other):
        return other * self if isinstance(other, Complex) else self._did("mul")

    def __truediv__(self, other):
        return other.inverse_times(self) if isinstance(other, Complex) else self._did("div")

    def __neg__(self):
        return self._did("add")

    def __abs__(self):
        return self._did("compare")

    def square(self):
        return self * self

    def compare(self, *others):
        for _ in others or (None,):
            self._did("compare")
        return self

    def choose(self, other):
        return self._did("select")

    def __getattr__(self, operation):
        """exp, log, sigmoid, tanh, sqrt, rsqrt, trigonometric."""
        return lambda: self._did(operation)


class Complex:
    """A complex number, made of two real ones."""

    __slots__ = ("imaginary", "real")

    def __init__(self, done: Counter):
        self.real, self.imaginary = Real(done), Real(done)

    @property
    def done(self):
        return self.real.done

    def __add__(self, other):
        # a sum of two complex numbers; torch makes both sides complex
        self.real + self.real
        self.imaginary + self.imaginary
        return self

    __sub__ = __add__

    def __mul__(self, other):
        if isinstance(other, Real):
            self.real * other
            self.imaginary * other
            return self
        self.real * self.real - self.imaginary * self.imaginary
        self.real * self.imaginary + self.imaginary * self.real
        return self

    def __truediv__(self, other):
        if isinstance(other, Real):
            self.real / other
            self.imaginary / other
            return self
        # a b* / |b|^2
        self * other
        size = other.real * other.real + other.imaginary * other.imaginary
        self.real / size
        self.imaginary / size
        return self

    def inverse_times(self, factor):
        """factor / self: b* / |b|^2, then a factor that is not 1."""
        size = self.real * self.real + self.imaginary * self.imaginary
        self.real / size
        -self.imaginary / size
        if factor is not None:
            self * factor
        return self

    def __neg__(self):
        self.real, self.imaginary = -self.real, -self.imaginary
        return self

    def __abs__(self):
        return (self.real * self.real + self.imaginary * self.imaginary).sqrt()

    def square(self):
        return self * self

    def compare(self, *others):
        self.real.compare()
        self.imaginary.compare()
        return self

    def choose(self, other):
        self.real.choose(other)
        self.imaginary.choose(other)
        return self

    def exp(self):
        size = self.real.exp()
        size * self.imaginary.trigonometric()
        size * self.imaginary.trigonometric()
        return self

    def log(self):
        abs(self).log()
        self.imaginary.trigonometric()
        return self


def numbers(value, done: Counter) -> np.ndarray:
    """Return counting numbers in the shape of a tensor, or one for a number of Python."""
    is_complex = value.is_complex() if isinstance(value, Tensor) else isinstance(value, complex)
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    array = np.empty(shape, dtype=object)
    array.fill(Complex(done) if is_complex else Real(done))
    return array


class Call(NamedTuple):
    """One call of an operator: arguments by the names of its schema, and what came of it."""

    args: dict[str, Any]
    results: list[Tensor]
    done: Counter

    def numbers(self, name: str) -> np.ndarray:
        return numbers(self.args[name], self.done)

    def new(self):
        return Complex(self.done) if self.results[0].is_complex() else Real(self.done)


def apply(function, *arrays):
    return np.frompyfunc(function, len(arrays), 1)(*arrays)
