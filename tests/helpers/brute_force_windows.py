"""What aten's poolings cost, window by window and input by input."""

import itertools
import math
import operator
from functools import reduce

import numpy as np
from counting_numbers import Real, numbers


def windows(dimensions, step, finish=None):
    def oracle(call):
        x, result = call.args["self"], call.results[0]
        sizes = {}
        for name in ("kernel_size", "stride", "padding", "dilation"):
            value = call.args.get(name, 1)
            value = [value] if isinstance(value, int) else list(value)
            sizes[name] = (value or list(sizes["kernel_size"])) * (dimensions if len(value) == 1 else 1)
        for place in np.ndindex(*result.shape):
            total = Real(call.done)
            for offset in np.ndindex(*sizes["kernel_size"]):
                at = [
                    o * s - p + k * d
                    for o, s, p, k, d in zip(
                        place[-dimensions:], sizes["stride"], sizes["padding"], offset, sizes["dilation"], strict=True
                    )
                ]
                if all(0 <= i < length for i, length in zip(at, x.shape[-dimensions:], strict=True)):
                    step(total)
            if finish:
                finish(total)

    return oracle


def adaptive_windows(dimensions, step, finish=None):
    def oracle(call):
        lengths, outputs = call.args["self"].shape[-dimensions:], call.results[0].shape[-dimensions:]
        for place in np.ndindex(*call.results[0].shape):
            total = Real(call.done)
            ranges = [
                range(math.floor(o * length / output), math.ceil((o + 1) * length / output))
                for o, length, output in zip(place[-dimensions:], lengths, outputs, strict=True)
            ]
            for _ in itertools.product(*ranges):
                step(total)
            if finish:
                finish(total)

    return oracle


def fractional_windows(call):
    for result in numbers(call.results[0], call.done).flat:
        result.compare(*range(math.prod(call.args["kernel_size"])))


def interpolation(dimensions, neighbours):
    """Each number is a sum of `neighbours`, each times a weight, and so is each of these in the next dimension."""

    def between(call, left):
        parts = [between(call, left - 1) * Real(call.done) for _ in range(neighbours)] if left else [Real(call.done)]
        return reduce(operator.add, parts)

    return lambda call: [between(call, dimensions) for _ in range(call.results[0].numel())]
