"""What the event-driven WKV declares to the op counter, against a loop whose numbers write down what happens."""

import math

import torch
from kernel_cases import event_wkv_inputs
from tolerances import assert_close

from neuromorphic.count.counts import KINDS, QUANTITIES
from spikegpt.kernels.event_wkv.door import event_wkv_operator


class Tallied:
    """A number that writes down what is computed with it."""

    def __init__(self, number, tally):
        self.number, self.tally = number, tally

    def _compute(self, kind, number):
        self.tally[kind] = self.tally.get(kind, 0) + 1
        return Tallied(number, self.tally)

    def __add__(self, other):
        return self._compute("add", self.number + other.number)

    def __mul__(self, other):
        return self._compute("mul", self.number * other.number)

    def __truediv__(self, other):
        return self._compute("div", self.number / other.number)

    def exp(self):
        return self._compute("exp", math.exp(self.number))

    def above(self, limit):
        self._compute("compare", 0.0)
        return self.number > limit

    def below(self, limit):
        self._compute("compare", 0.0)
        return self.number < limit

    def is_event(self):
        self._compute("compare", 0.0)
        return self.number != 0


def tallied_event_wkv(time_decay, time_first, key, value, tally):
    """Return the outputs (T, C) of one text from the empty state, computed by events, one number after the other."""
    (T, C), read = key.shape, tally.setdefault("activation_reads", 0)
    one, outputs = Tallied(1.0, tally), []
    decay, first = ([Tallied(x, tally) for x in y.tolist()] for y in ((-time_decay.exp()).exp(), time_first.exp()))
    numerator, denominator = ([Tallied(0.0, tally) for _ in range(C)] for _ in range(2))
    for t in range(T):
        for c in range(C):
            v = Tallied(value[t, c].item(), tally)
            read += 1
            if v.is_event():
                k = Tallied(key[t, c].item(), tally)
                read += 1
                assert not k.above(20) and not k.below(-20)
                weight = k.exp()
                present = first[c] * weight
                outputs.append((numerator[c] + present * v) / (denominator[c] + present))
                numerator[c] = decay[c] * numerator[c] + weight * v
                denominator[c] = decay[c] * denominator[c] + weight
            else:
                outputs.append(numerator[c] / (denominator[c] + first[c]))
                numerator[c] = decay[c] * numerator[c]
                denominator[c] = decay[c] * denominator[c] + one
    tally["activation_reads"] = read
    return torch.tensor([output.number for output in outputs]).view(1, T, C)


def test_declared_cost_is_the_one_counted_number_by_number():
    time_decay, time_first, key, value, *_ = event_wkv_inputs(1, 6, 5, rate=0.4)
    args, tally = (time_decay, time_first, key, value, torch.zeros(1, 5), torch.zeros(1, 5)), {}
    results = event_wkv_operator(*args)
    assert_close(results[0], tallied_event_wkv(time_decay, time_first, key[0], value[0], tally))
    declared = torch.ops.spikegpt.event_wkv.default.op_cost(args, {}, results)
    memory = {"weights_once": 10, "weights_per_event": 60, "weights_dense": 60, "activation_writes": 30}
    state = {"state_elements": 10, "state_reads": 60, "state_writes": 60}
    assert 0 < tally["exp"] < 30
    assert declared == {"kind": "scan", **tally, **memory, **state}
    assert set(declared) - {"kind", "state_elements"} <= set(QUANTITIES) and declared["kind"] in KINDS
