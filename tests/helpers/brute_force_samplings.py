"""What aten's samplings, draws and searches cost, place by place."""

import itertools
import operator
from functools import reduce

from counting_numbers import Real, apply, numbers
from torch import Tensor


def grid_sampler(call):
    """Bilinear or nearest, with zeros or the border beyond the input."""
    is_bilinear, is_bordered = call.args["interpolation_mode"] == 0, call.args["padding_mode"] == 1
    channels = call.args["input"].shape[1]
    for place in call.numbers("grid").reshape(-1, call.args["grid"].shape[-1]):
        near, far = [], []
        for coordinate in place:
            at = coordinate * coordinate + coordinate
            at = at.compare().compare() if is_bordered else at
            # the neighbours on both sides, or the nearest
            left = at.compare()
            for side in (left, left)[: 1 + is_bilinear] if not is_bordered else ():
                # not before the first, not after the last
                side.compare().compare()
            if is_bilinear:
                near.append(at - left)
                far.append(left - at)
        if is_bilinear:
            weights = [reduce(operator.mul, corner) for corner in itertools.product(*zip(near, far, strict=True))]
            for _ in range(channels):
                reduce(operator.add, [weight * Real(call.done) for weight in weights])


def affine_grid(call):
    """The matrix times each place, whose last coordinate is 1."""
    for place in call.results[0].reshape(-1, call.results[0].shape[-1]):
        for _ in place:
            reduce(operator.add, [Real(call.done) * Real(call.done) for _ in place]) + Real(call.done)


def bernoulli(call):
    return [number.compare() for number in numbers(call.results[0], call.done).flat]


def normal(call):
    for drawn in numbers(call.results[0], call.done).flat:
        drawn = drawn * drawn if isinstance(call.args["std"], Tensor) else drawn
        drawn + drawn if isinstance(call.args["mean"], Tensor) else drawn


def search(name):
    """Halve what is left of the boundaries until one of n + 1 places is found."""

    def oracle(call):
        for number in numbers(call.results[0], call.done).flat:
            places = call.args[name].shape[-1] + 1
            while places > 1:
                number.compare()
                places = (places + 1) // 2

    return oracle


def fake_quantised(call):
    return apply(lambda x: ((x * x).compare() + x).compare().compare().__sub__(x) * x, call.numbers("self"))


def reduced(call, elements):
    """The sum or the mean of so many, as `reduction` says."""
    for _ in range(elements if call.args["reduction"] else 0):
        Real(call.done) + Real(call.done)
    if call.args["reduction"] == 1:
        Real(call.done) / Real(call.done)


def nll_loss(call):
    targets = call.numbers("target")
    for target in targets.flat:
        -target.compare()
    reduced(call, targets.size)


def loss_of_logits(call):
    def element(x, y):
        log_sigmoid = x.compare() - (-abs(x)).exp().log()
        return (x - y) * x - log_sigmoid

    apply(element, call.numbers("self"), call.numbers("target"))
    reduced(call, call.args["self"].numel())
