"""Squared ReLU, gate, dropout and firing rate: the numba kernels against the reference, and numbers worked by hand."""

import pytest
import torch
from kernel_cases import assert_all_close, cotangents_of
from tolerances import TOLERANCE

from neuromorphic import OpCounter
from neuromorphic.count.counts import QUANTITIES
from spikegpt.config import ModelConfig
from spikegpt.kernels import dropout, firing_rate, gate, rescale_columns, squared_relu
from spikegpt.kernels.pointwise import cpu
from spikegpt.kernels.pointwise.door import firing_rate_operator, gate_operator, squared_relu_operator
from spikegpt.model.network import SpikeGPT

FUNCTIONS = {"squared_relu": (squared_relu, 1), "gate": (gate, 2), "firing_rate": (firing_rate, 1)}
BACKENDS = ["numba", "reference"]
# less than a run, a run and a bit, several tasks
SHAPES = [(1,), (3, 5), (1, 1, 1025), (3, 257, 600)]
every_function = pytest.mark.parametrize(("function", "arguments"), FUNCTIONS.values(), ids=FUNCTIONS)


def inputs(number, shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return [(torch.randn(shape, generator=generator) * 3).to(dtype).requires_grad_() for _ in range(number)]


def everything(function, tensors, backend):
    result = function(*tensors, backend)
    return [result.detach(), *torch.autograd.grad(result, tensors, cotangents_of([result]))]


@every_function
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_size_and_precision_is_the_references(function, arguments, shape, dtype):
    tensors = inputs(arguments, shape, dtype)
    assert_all_close(*(everything(function, tensors, backend) for backend in BACKENDS), dtype)


# sigmoid(0) = 1/2, its slope 1/4; sigmoid(ln 3) = 3/4, its slope 3/16
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_are_the_hand_worked_ones(backend):
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    values, slopes = everything(squared_relu, [x], backend)
    assert (values.tolist(), (slopes / cotangents_of([x])[0]).tolist()) == ([0.0, 0.0, 9.0], [0.0, 0.0, 6.0])
    receptance, y = torch.tensor([0.0, 3.0]).log1p().mul(0.5).requires_grad_(), torch.tensor([4.0, 8.0])
    gated = gate(receptance * 2 - torch.tensor([0.0, 0.28768207]), y, backend)
    assert gated.tolist() == pytest.approx([2.0, 6.0], rel=1e-6)
    gated.sum().backward()
    assert receptance.grad.tolist() == pytest.approx([2 * 4 / 4, 2 * 8 * 3 / 16], rel=1e-6)
    # of 2, -1, 0, 0.5 the first counts once and has no gradient, the second's points to silence, as the fourth's
    spikes = torch.tensor([2.0, -1.0, 0.0, 0.5], requires_grad=True)
    rate = firing_rate(spikes, backend)
    rate.backward()
    assert (rate.item(), spikes.grad.tolist()) == (0.625, [0.0, -0.25, 0.0, 0.25])


def test_rescaled_columns_are_the_references():
    generator, shapes = torch.Generator().manual_seed(0), [(1, 1), (0, 3), (3, 257), (700, 300), (512, 1024)]
    weights, grads = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    worths, results = [torch.rand(width, generator=generator) + 0.1 for _, width in shapes], []
    for backend in BACKENDS:
        copies = [tensor.clone() for tensor in weights], [tensor.clone() for tensor in grads]
        results.append(([*copies[0], *copies[1]], rescale_columns(*copies, worths, backend)))
    (found, sums), (wanted, wanted_sums) = results
    assert all(map(torch.equal, found, wanted))
    assert_all_close(sums, wanted_sums, torch.float32)
    assert rescale_columns([], [], []) == []


# by hand: 2 * 3 + -1 * 5 = 1 of a column worth 4
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, lambda x: torch.stack([x, x], dim=-1)[..., 0]])
def test_columns_are_rescaled_in_place_whatever_the_gaps_in_memory(layout):
    weight, grad = layout(torch.tensor([[2.0], [-1.0]])), layout(torch.tensor([[3.0], [5.0]]))
    (sums,) = rescale_columns([weight], [grad], [torch.tensor([4.0])])
    assert (weight.tolist(), grad.tolist(), sums.tolist()) == ([[0.5], [-0.25]], [[12.0], [20.0]], [1.0])
    with pytest.raises(ValueError, match="without gaps"):
        rescale_columns([weight.bfloat16()], [grad], [torch.tensor([4.0])], "numba")


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_seen(backend):
    strange = torch.tensor([float("nan"), float("inf"), -float("inf")], requires_grad=True)
    ones = torch.ones(3, requires_grad=True)
    assert str(squared_relu(strange, backend).tolist()) == "[nan, inf, 0.0]"
    assert str(gate(strange, ones, backend).tolist()) == "[nan, 1.0, 0.0]"
    assert str(gate(ones, strange, backend)[0].item()) == "nan"
    assert str(firing_rate(strange, backend).item()) == "nan"


def test_bfloat16_is_rounded_as_torch_rounds_it():
    # halfway cases, subnormal numbers, the largest ones, infinity, NaN
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x00018000, 0x7F7F8000, 0x7F7F7FFF, 0x7F800000, 0x7FFFFFFF])
    numbers = bits.int().view(torch.float32)
    rounded = torch.empty(len(numbers), dtype=torch.bfloat16)
    cpu._dropout_pass(0, cpu.as_words(rounded), numbers.numpy(), *map(cpu.np.uint32, (1, 2, 0)), cpu.np.float32(1))
    assert torch.equal(rounded.view(torch.int16)[:-1], numbers.bfloat16().view(torch.int16)[:-1])
    assert rounded[-1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.03, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate, dtype):
    x = torch.ones(1 << 20, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, rate, "numba")
    kept = torch.tensor(1 / (1 - rate)).to(dtype)
    assert set(y.unique().tolist()) == {0.0, kept.item()}
    # five standard deviations of a share of a million
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=5 * (rate * (1 - rate)) ** 0.5 / 1024)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_draws_of_dropout_do_not_know_of_each_other():
    x = torch.ones(1 << 20, requires_grad=True)
    torch.manual_seed(1)
    masks = [dropout(x, 0.5, "numba").detach().sign() * 2 - 1 for _ in range(2)]
    neighbours = [(masks[0][:-shift] * masks[0][shift:]).mean().abs().item() for shift in (1, 2, 256, 1024, 1 << 17)]
    # 0 to five standard deviations: draws of one call, of two calls, of seeds that are neighbours
    near = cpu.dropout(x, 0.5, 7), cpu.dropout(x, 0.5, 8)
    others = [(masks[0] * masks[1]).mean().abs().item(), ((near[0] - 1) * (near[1] - 1)).mean().abs().item()]
    assert max(neighbours + others) < 5 / 1024


def test_dropout_follows_torchs_generator_and_the_number_of_threads_changes_nothing():
    x, threads = torch.ones(1 << 20, requires_grad=True), torch.get_num_threads()
    drawn = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            torch.manual_seed(3)
            drawn.append(dropout(x, 0.1, "numba").detach())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], dropout(x, 0.1, "numba"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rate_of_0_drops_nothing_and_one_outside_is_refused(backend):
    x = torch.ones(3, requires_grad=True)
    assert dropout(x, 0.0, backend) is x
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"dropout: rate must be at least 0 and below 1, got {rate}"):
            dropout(x, rate, backend)


def test_other_shapes_and_precisions_are_gated_as_torch_does():
    receptance, y = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True), torch.ones(2, 3)
    assert torch.equal(gate(receptance, y), torch.full((2, 3), 0.5))


@pytest.mark.parametrize("spiking", ["none", "input", "output"])
def test_training_is_counted_as_reading_is(spiking):
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=24, vocab_size=50, spiking=spiking, dropout=0.0))
    ids, totals = torch.arange(12).view(2, 6), []
    for is_trained in (True, False):
        with torch.set_grad_enabled(is_trained), OpCounter(model) as counter:
            model(ids)
        tally = counter.tally()
        assert not tally.uncounted
        # the same work in fewer calls
        totals.append({name: getattr(tally.total(), name) for name in QUANTITIES if name != "calls"})
    assert totals[0] == totals[1]


def test_operators_keep_to_torchs_rules():
    x, y = inputs(2, (2, 3))
    for operator, arguments in ((squared_relu_operator, (x,)), (gate_operator, (x, y)), (firing_rate_operator, (x,))):
        torch.library.opcheck(operator.definition, arguments)
