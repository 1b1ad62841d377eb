"""Neurons that are one kernel with what drives them, against the separate operations, and numbers worked by hand."""

import pytest
import torch
from kernel_cases import SIZES, assert_all_close, cotangents_of
from tolerances import TOLERANCE

from neuromorphic import OpCounter
from spikegpt.kernels import (
    firing_rate,
    gate,
    gated_lif,
    integer_lif,
    shifted_lif,
    squared_relu,
    squared_relu_lif,
    token_shift,
)
from spikegpt.kernels.fused_lif.door import gated_operator, shifted_operator, squared_relu_operator
from spikegpt.kernels.integer_lif.options import IntegerLIFOptions

BACKENDS = ["numba", "reference"]
KINDS = [
    IntegerLIFOptions(levels=levels, signed=signed) for levels, signed in ((4, True), (8, False), (1, True), (1, False))
]
every_kind = pytest.mark.parametrize("options", KINDS, ids=lambda o: f"{o.levels}-{o.signed}")
# float16 is served by the separate kernels
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def shift_inputs(B, T, C, number=3, dtype=torch.float32):
    """[x, previous, shares ..., thresholds ...], with gradients: counts from -8 to 8 and beyond occur."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    x, previous = torch.randn(B, T, C, generator=generator) * 5, torch.randn(B, C, generator=generator)
    shares = [torch.rand(1, 1, C, generator=generator) * 1.2 - 0.1 for _ in range(number)]
    thresholds = [torch.rand(C, generator=generator) + 0.5 for _ in range(number)]
    return [tensor.requires_grad_() for tensor in (x.to(dtype), previous.to(dtype), *shares, *thresholds)]


def hidden_inputs(B, T, C, dtype=torch.float32):
    """[x, threshold], with gradients."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    x, threshold = torch.randn(B, T, C, generator=generator) * 2, torch.rand(C, generator=generator) + 0.5
    return [x.to(dtype).requires_grad_(), threshold.requires_grad_()]


def gated_inputs(B, T, C, dtype=torch.float32):
    """[receptance, y, threshold], with gradients."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    receptance, y = torch.randn(2, B, T, C, generator=generator) * torch.tensor([2.0, 6.0]).view(2, 1, 1, 1)
    tensors = receptance.to(dtype), y.to(dtype), torch.rand(C, generator=generator) + 0.5
    return [tensor.requires_grad_() for tensor in tensors]


def shifted(tensors, options, backend, dtype=None):
    """Return (spikes, rates, gradients of everything) of both, under fixed random cotangents."""
    x, previous, *rows = tensors
    number = len(rows) // 2
    spikes = shifted_lif(x, previous, rows[:number], rows[number:], options, backend, dtype=dtype)
    return observed(spikes, tensors, backend)


def hidden(tensors, options, backend, dtype=None):
    return observed([squared_relu_lif(*tensors, options, backend, dtype=dtype)], tensors, backend)


def gated(tensors, options, backend, dtype=None):
    return observed([gated_lif(*tensors, options, backend, dtype=dtype)], tensors, backend)


def observed(spikes, tensors, backend):
    # as large as a gradient of the spikes
    counted_by = "auto" if backend == "numba" else "reference"
    rates = [firing_rate(part, counted_by) * part.numel() * (1 + place) for place, part in enumerate(spikes)]
    grads = torch.autograd.grad([*spikes, *rates], tensors, [*cotangents_of(spikes), *map(torch.ones_like, rates)])
    return [part.detach() for part in spikes], [rate.detach() for rate in rates], list(grads)


def assert_alike(found, wanted, dtype=torch.float32):
    assert all(map(torch.equal, found[0], wanted[0]))
    assert_all_close(found[1] + found[2], wanted[1] + wanted[2], dtype)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("size", [*SIZES, (2, 96, 64), (3, 300, 256)])
def test_shift_and_neurons_are_the_references_at_every_size(size, number):
    tensors = shift_inputs(*size, number)
    assert_alike(*(shifted(tensors, KINDS[0], backend) for backend in BACKENDS))


@pytest.mark.parametrize("size", [*SIZES, (3, 90, 1024)])
def test_squared_relu_and_neurons_are_the_references_at_every_size(size):
    tensors = hidden_inputs(*size)
    assert_alike(*(hidden(tensors, KINDS[1], backend) for backend in BACKENDS))


@pytest.mark.parametrize("size", [*SIZES, (3, 90, 1024)])
def test_gate_and_neurons_are_the_references_at_every_size(size):
    tensors = gated_inputs(*size)
    assert_alike(*(gated(tensors, KINDS[0], backend) for backend in BACKENDS))


@every_kind
@every_dtype
def test_every_kind_in_every_precision_is_the_references(options, dtype):
    # a stream of less precision than float32 is mixed otherwise by torch: see `token_shift`'s tests
    tensors = shift_inputs(2, 63, 33)
    assert_alike(*(shifted(tensors, options, backend, dtype) for backend in BACKENDS), dtype)
    tensors = hidden_inputs(2, 63, 33, dtype)
    assert_alike(*(hidden(tensors, options, backend) for backend in BACKENDS), dtype)
    # torch rounds the share that a gate lets through too
    receptance, y, threshold = tensors = gated_inputs(2, 63, 33, dtype)
    current = gate(receptance.float(), y.float(), "reference").to(dtype)
    spikes, _ = integer_lif(current, threshold=threshold, options=options, backend="reference")
    assert_alike(gated(tensors, options, "numba"), observed([spikes], tensors, "reference"), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spikes_are_those_of_the_separate_kernels_bit_for_bit(dtype):
    x, previous, *rows = shift_inputs(3, 300, 256, dtype=dtype)
    mixes = token_shift(x, previous, rows[:3], "numba")
    apart = [integer_lif(mix, threshold=row, options=KINDS[0])[0] for mix, row in zip(mixes, rows[3:], strict=True)]
    assert all(map(torch.equal, shifted_lif(x, previous, rows[:3], rows[3:], KINDS[0]), apart))
    x, threshold = hidden_inputs(3, 300, 256, dtype)
    apart, _ = integer_lif(squared_relu(x, "numba"), threshold=threshold, options=KINDS[1])
    assert torch.equal(squared_relu_lif(x, threshold, KINDS[1]), apart)
    receptance, y, threshold = gated_inputs(3, 300, 256, dtype)
    apart, _ = integer_lif(gate(receptance, y, "numba"), threshold=threshold, options=KINDS[0])
    assert torch.equal(gated_lif(receptance, y, threshold, KINDS[0]), apart)


# by hand: a share of 0.25 makes 1.25, 2.5, 5.5 of 2, 4, 10 after 1 (see test_token_shift.py); with a threshold of 1 and
# at most 4 levels that is 1, 2, 4 spikes. The last is beyond 4.5 thresholds: of the cotangents 1, 2, 4 the currents get
# 1, 2, 0, the threshold -(1.25 + 5) / 1. d x = 0.25 + 0.75 * 2, 0.5, 0; d before 0.75; d share = 1 * 1 + 2 * 2
@pytest.mark.parametrize("backend", BACKENDS)
def test_three_tokens_are_the_hand_worked_ones(backend):
    tensors = torch.tensor([[[2.0], [4.0], [10.0]]]), torch.tensor([[1.0]]), torch.tensor([0.25]), torch.tensor([1.0])
    x, previous, share, threshold = (tensor.requires_grad_() for tensor in tensors)
    (spikes,) = shifted_lif(x, previous, [share], [threshold], KINDS[0], backend)
    assert spikes.flatten().tolist() == [1.0, 2.0, 4.0]
    grads = torch.autograd.grad(spikes, (x, previous, share, threshold), torch.tensor([[[1.0], [2.0], [4.0]]]))
    assert [grad.flatten().tolist() for grad in grads] == [[1.75, 0.5, 0.0], [0.75], [5.0], [-6.25]]


# 1.5^2 = 2.25 thresholds are 2 spikes, 0.5^2 none and less than half a threshold, 3^2 = 9 beyond 8.5, -1 never drives:
# d x = 2 * 1.5, d threshold = -2.25
@pytest.mark.parametrize("backend", BACKENDS)
def test_four_hidden_currents_are_the_hand_worked_ones(backend):
    x, threshold = torch.tensor([[[1.5], [0.5], [3.0], [-1.0]]], requires_grad=True), torch.ones(1, requires_grad=True)
    spikes = squared_relu_lif(x, threshold, KINDS[1], backend)
    assert spikes.flatten().tolist() == [2.0, 0.0, 8.0, 0.0]
    grads = torch.autograd.grad(spikes.sum(), (x, threshold))
    assert [grad.flatten().tolist() for grad in grads] == [[3.0, 0.0, 0.0, 0.0], [-2.25]]


# the gate is open by a half at 0: currents of 2, -1 and 0.5 thresholds of 0.5 are 2, -1 and 0 spikes; 5 are 4 and
# beyond 4.5. Of the cotangents 1, 2, 4, 8 the currents get 2, 4, 8, 0; d y is half of that, d receptance a quarter
# times y, d threshold -(2 * 2 + 4 * -1 + 8 * 0.5)
@pytest.mark.parametrize("backend", BACKENDS)
def test_four_gated_currents_are_the_hand_worked_ones(backend):
    receptance, y = torch.zeros(1, 4, 1), torch.tensor([[[2.0], [-1.0], [0.5], [5.0]]])
    tensors = [tensor.requires_grad_() for tensor in (receptance, y, torch.tensor([0.5]))]
    spikes = gated_lif(*tensors, KINDS[0], backend)
    assert spikes.flatten().tolist() == [2.0, -1.0, 0.0, 4.0]
    grads = torch.autograd.grad(spikes, tensors, torch.tensor([[[1.0], [2.0], [4.0], [8.0]]]))
    assert [grad.flatten().tolist() for grad in grads] == [[1.0, -1.0, 1.0, 0.0], [1.0, 2.0, 4.0, 0.0], [-4.0]]


def test_a_gate_of_two_precisions_is_the_separate_operations():
    receptance, y, threshold = gated_inputs(2, 5, 12)
    found = gated_lif(receptance.bfloat16(), y, threshold, KINDS[0])
    wanted, _ = integer_lif(gate(receptance.bfloat16(), y), threshold=threshold, options=KINDS[0])
    assert torch.equal(found, wanted)


def test_thresholds_may_be_numbers_and_texts_begin_with_zeros():
    x, _, *rows = shift_inputs(2, 9, 12)
    found = shifted_lif(x, None, rows[:2], [0.5, 2.0], KINDS[0], "numba")
    wanted = shifted_lif(x, torch.zeros(2, 12), rows[:2], [torch.full((12,), t) for t in (0.5, 2.0)], KINDS[0], "numba")
    assert all(map(torch.equal, found, wanted))
    grads = torch.autograd.grad(found[1], (x, rows[1]), torch.ones_like(x))
    assert all(map(torch.equal, grads, torch.autograd.grad(wanted[1], (x, rows[1]), torch.ones_like(x))))


def test_what_is_not_finite_is_seen():
    x = torch.tensor([[[float("nan")], [float("inf")]]], dtype=torch.bfloat16, requires_grad=True)
    assert str(squared_relu_lif(x, 1.0, KINDS[1], "numba").flatten().tolist()) == "[nan, 8.0]"
    (spikes,) = shifted_lif(x, None, [torch.ones(1)], [1.0], KINDS[0], "numba")
    assert str(spikes.flatten().tolist()) == "[nan, nan]"


def test_the_number_of_threads_changes_nothing():
    threads, found = torch.get_num_threads(), []
    shift, relu, of_gate = shift_inputs(3, 1000, 256), hidden_inputs(3, 1000, 256), gated_inputs(3, 1000, 256)
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results = *shifted(shift, KINDS[0], "numba"), *hidden(relu, KINDS[1], "numba")
            results += gated(of_gate, KINDS[0], "numba")
            found.append([tensor for part in results for tensor in part])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


def test_what_does_not_fit_is_named():
    x, share = torch.zeros(2, 4, 3, requires_grad=True), torch.zeros(3)
    with pytest.raises(ValueError, match="shifted_lif: threshold has shape"):
        shifted_lif(x, None, [share], [torch.ones(4)], KINDS[0])
    with pytest.raises(ValueError, match="x must be"):
        shifted_lif(x[0], None, [share], [1.0], KINDS[0])
    with pytest.raises(ValueError, match="gated_lif: threshold has shape"):
        gated_lif(x, x, torch.ones(4), KINDS[0])
    with pytest.raises(ValueError, match="squared_relu_lif: there is no kernel for a GPU"):
        squared_relu_lif(x, 1.0, KINDS[1], "cupy")


def test_the_declared_cost_is_that_of_the_separate_operations():
    """Called by a module of somebody's own, whose neurons are no modules."""

    class Half(torch.nn.Module):
        def __init__(self, fuses):
            super().__init__()
            self.backend, self.share = "numba" if fuses else "auto", torch.nn.Parameter(torch.rand(8))

        def forward(self, x):
            if self.backend == "numba":
                spikes = shifted_lif(x, None, [self.share] * 2, [0.3, 0.6], KINDS[0], "numba")
                return gated_lif(x, squared_relu_lif(sum(spikes), 0.5, KINDS[1], "numba"), 0.7, KINDS[0], "numba")
            mixes = token_shift(x, None, [self.share] * 2, "numba")
            spikes = [
                integer_lif(mix, threshold=t, options=KINDS[0])[0] for mix, t in zip(mixes, (0.3, 0.6), strict=True)
            ]
            hidden = integer_lif(squared_relu(sum(spikes), "numba"), threshold=0.5, options=KINDS[1])[0]
            return integer_lif(gate(x, hidden, "numba"), threshold=0.7, options=KINDS[0])[0]

    torch.manual_seed(0)
    x, totals = torch.randn(2, 5, 8), []
    halves = Half(True), Half(False)
    halves[1].load_state_dict(halves[0].state_dict())
    for half in halves:
        with OpCounter(half) as counter:
            half(x)
        assert not counter.tally().uncounted
        counts = vars(counter.tally().total())
        totals.append({name: count for name, count in counts.items() if name != "calls"})
    assert totals[0] == totals[1] and totals[0]["events_out"] > 0


def test_operators_keep_to_torchs_rules():
    x, previous, *rows = shift_inputs(2, 3, 5, 2)
    kind, tensors = (4, True, "subtract", True, torch.float32), [row.flatten() for row in rows]
    torch.library.opcheck(shifted_operator.definition, (x, previous, tensors[:2], tensors[2:], *kind))
    torch.library.opcheck(squared_relu_operator.definition, (*hidden_inputs(2, 3, 5), *kind))
    torch.library.opcheck(gated_operator.definition, (*gated_inputs(2, 3, 5), *kind))
