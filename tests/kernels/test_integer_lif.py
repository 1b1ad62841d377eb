"""The numba kernel of the integer LIF neuron against the reference: outputs, states, gradients, memory, cost."""

import itertools
import math

import pytest
import torch
from kernel_cases import SIZES, assert_all_close, cotangents_of, integer_lif_inputs
from tolerances import TOLERANCE, assert_close

from neuromorphic import OpCounter
from neuromorphic.count.counts import KINDS, QUANTITIES
from spikegpt.kernels import firing_rate, integer_lif, lif
from spikegpt.kernels.integer_lif.door import integer_lif_operator, memoryless_operator

OPTIONS = [
    {"levels": levels, "signed": signed, "reset": reset, "decay_input": decay_input}
    for levels, signed, reset, decay_input in itertools.product(
        (1, 2, 4, 8), (False, True), ("subtract", "zero", "none"), (False, True)
    )
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
leaky_or_memoryless = pytest.mark.parametrize("memoryless", [False, True], ids=["leaky", "memoryless"])


def call(inputs, backend, **options):
    current, potential, decay, threshold = inputs
    return integer_lif(current, potential, membrane_decay=decay, threshold=threshold, backend=backend, **options)


def everything(inputs, backend, **options):
    """Return (spikes, final potential, gradients of the four inputs) under a fixed random cotangent."""
    spikes, final = call(inputs, backend, **options)
    grad_spikes = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1)).to(spikes.dtype)
    grads = torch.autograd.grad((spikes, final), inputs, (grad_spikes, torch.ones_like(final)))
    return [spikes.detach(), final.detach(), *grads]


@pytest.mark.parametrize("size", SIZES)
def test_integer_lif_matches_reference_at_every_size(size):
    inputs = integer_lif_inputs(*size)
    options = {"levels": 4, "signed": True}
    assert_all_close(everything(inputs, "numba", **options), everything(inputs, "reference", **options))


@leaky_or_memoryless
@every_option
def test_integer_lif_matches_reference_with_every_option(options, memoryless):
    # 150 steps: two full segments and a part of one in the backward pass
    inputs = integer_lif_inputs(2, 150, 70, memoryless=memoryless)
    assert_all_close(everything(inputs, "numba", **options), everything(inputs, "reference", **options))


@leaky_or_memoryless
@every_option
def test_integer_lif_is_bit_identical_to_the_reference(options, memoryless):
    # the backward pass recomputes the potentials and must find the same spikes
    inputs = integer_lif_inputs(2, 257, 130, memoryless=memoryless)
    spikes, final = call(inputs, "numba", **options)
    wanted_spikes, wanted_final = call(inputs, "reference", **options)
    assert torch.equal(spikes, wanted_spikes)
    assert torch.equal(final, wanted_final)


@leaky_or_memoryless
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_integer_lif_matches_reference_in_every_dtype(dtype, memoryless):
    inputs = integer_lif_inputs(2, 63, 33, dtype, memoryless)
    options = {"levels": 8, "signed": True}
    assert_all_close(everything(inputs, "numba", **options), everything(inputs, "reference", **options), dtype)


# by hand, decay 0.5, threshold 0.5, 4 levels, input as it is, charged -> spikes -> rest:
# subtract: 1.25 -> 2 -> 0.25;  0.125 - 1.125 = -1 -> -2 -> 0;  3 -> 4 (not 6) -> 1;  0.5 + 0 -> 1 -> 0
# zero:     1.25 -> 2 -> 0;     0 - 1.125 -> -2 -> 0;            3 -> 4 -> 0;          0 -> 0
# none:     1.25 -> 2 -> 1.25;  0.625 - 1.125 = -0.5 -> -1 -> -0.5;  2.75 -> 4 -> 2.75;  1.375 -> 2 -> 1.375
# unsigned: 1.25 -> 2 -> 0.25;  -1 -> 0 -> -1;                   -0.5 + 3 = 2.5 -> 4 -> 0.5;  0.25 -> 0 -> 0.25
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize(
    ("options", "wanted_spikes", "wanted_final"),
    [
        ({"signed": True, "reset": "subtract"}, [2, -2, 4, 1], 0.0),
        ({"signed": True, "reset": "zero"}, [2, -2, 4, 0], 0.0),
        ({"signed": True, "reset": "none"}, [2, -1, 4, 2], 1.375),
        ({"signed": False, "reset": "subtract"}, [2, 0, 4, 0], 0.25),
    ],
)
def test_a_potential_of_several_thresholds_fires_several_spikes(backend, options, wanted_spikes, wanted_final):
    current = torch.tensor([1.25, -1.125, 3.0, 0.0]).view(1, 4, 1)
    spikes, final = integer_lif(
        current, membrane_decay=0.5, threshold=0.5, levels=4, decay_input=False, backend=backend, **options
    )
    assert spikes.flatten().tolist() == wanted_spikes
    assert final.item() == wanted_final


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_gradients_of_one_step_are_the_hand_worked_ones(backend):
    # decay 0.5, potential 1, current 2: charged 0.5 + 0.5 * 2 = 1.5, threshold 0.5: quanta 3. d spikes / d charged = 1
    # / 0.5 = 2
    current, potential = torch.tensor([[[2.0]]], requires_grad=True), torch.tensor([[1.0]], requires_grad=True)
    decay, threshold = torch.tensor([0.5], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    spikes, final = call((current, potential, decay, threshold), backend, levels=4)
    assert (spikes.item(), final.item()) == (3.0, 0.0)
    grads = torch.autograd.grad(spikes, (current, potential, decay, threshold))
    # gain * 2;  decay * 2;  (potential - current) * 2;  -quanta / threshold
    assert [grad.item() for grad in grads] == [1.0, 1.0, -2.0, -6.0]


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("decay_input", [False, True])
def test_one_unsigned_level_is_the_lif_with_the_rectangular_surrogate(reset, decay_input):
    current, potential, decay, _ = integer_lif_inputs(2, 100, 33)
    common = {"membrane_decay": decay, "threshold": 1.0, "reset": reset, "decay_input": decay_input, "backend": "numba"}
    ours = integer_lif(current, potential, levels=1, **common)
    theirs = lif(current, potential, detach_reset=True, surrogate="rectangular", slope=1.0, **common)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    cotangents = [torch.randn_like(tensor) for tensor in ours]
    grads = [torch.autograd.grad(results, (current, potential, decay), cotangents) for results in (ours, theirs)]
    for found, wanted in zip(*grads, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_integer_lif_split_in_two_is_the_whole(backend, reset):
    current, potential, decay, threshold = inputs = integer_lif_inputs(2, 90, 33)
    options = {
        "membrane_decay": decay,
        "threshold": threshold,
        "levels": 4,
        "signed": True,
        "reset": reset,
        "backend": backend,
    }
    whole = integer_lif(current, potential, **options)
    first, middle = integer_lif(current[:, :41], potential, **options)
    second, final = integer_lif(current[:, 41:], middle, **options)
    split = torch.cat([first, second], dim=1), final
    assert torch.equal(split[0], whole[0]) and torch.equal(split[1], whole[1])
    cotangents = [torch.randn_like(tensor) for tensor in whole]
    grads = [torch.autograd.grad(results, inputs, cotangents) for results in (split, whole)]
    for found, wanted in zip(*grads, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize(("signed", "wanted"), [(True, 1.0), (False, 0.0)])
def test_silent_channels_learn_only_when_signed(signed, wanted):
    # below half a threshold nothing fires; straight through, a signed neuron has no dead zone around 0
    current = torch.full((2, 5, 3), 0.25, requires_grad=True)
    spikes, _ = integer_lif(current, levels=4, signed=signed, backend="numba")
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    assert not spikes.any()
    assert (grad == wanted).all()


def test_a_channel_beyond_the_highest_level_gets_no_gradient():
    # with 2 levels the window ends at 2.5 thresholds, that edge included
    current = torch.tensor([2.0, 2.5, 2.625, -2.5, -2.625]).view(1, 1, 5).requires_grad_()
    spikes, _ = integer_lif(current, levels=2, signed=True, backend="numba")
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    assert spikes.flatten().tolist() == [2, 2, 2, -2, -2]
    assert grad.flatten().tolist() == [1, 1, 0, 1, 0]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_nan_and_infinity_are_never_hidden(backend, reset):
    current = torch.zeros(1, 3, 3)
    current[0, 1] = torch.tensor([math.nan, math.inf, -math.inf])
    spikes, _ = integer_lif(current, membrane_decay=0.5, levels=3, signed=True, reset=reset, backend=backend)
    assert spikes[0, 1, 0].isnan()
    assert spikes[0, 1, 1:].tolist() == [3, -3]


def test_float64_is_served_by_the_reference():
    spikes, final = integer_lif(torch.full((1, 2, 3), 2.25, dtype=torch.float64), levels=4)
    assert spikes.dtype == final.dtype == torch.float64
    assert (spikes == 2).all() and (final == 0.25).all()


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(3, 257, 130), (1, 100, 600)])
def test_integer_lif_is_bit_identical_on_one_and_two_threads(size, thread_count):
    thread_count(1)
    one = everything(integer_lif_inputs(*size), "numba", levels=4, signed=True)
    thread_count(2)
    assert all(map(torch.equal, one, everything(integer_lif_inputs(*size), "numba", levels=4, signed=True)))


def test_integer_lif_reads_non_contiguous_inputs_and_expanded_gradients():
    current = torch.randn(33, 63, 6).requires_grad_()
    turned = current.permute(2, 1, 0)[::2]
    grads = [
        torch.autograd.grad(integer_lif(drive, membrane_decay=0.5, backend=backend)[0].sum(), current)[0]
        for backend, drive in (("numba", turned), ("reference", turned.contiguous()))
    ]
    assert_close(*grads)


def test_the_operator_passes_opcheck():
    torch.library.opcheck(integer_lif_operator.definition, (*integer_lif_inputs(2, 5, 3), 4, True, "subtract", True))


def test_the_door_compiles_without_a_graph_break():
    def network(x):
        return integer_lif(x * 3, membrane_decay=0.5, levels=4, signed=True)[0].square().sum()

    x = torch.randn(2, 5, 3)
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.compile(network, fullgraph=True, backend="aot_eager")(x).backward()
    network(y).backward()
    assert_close(x.grad, y.grad)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_fake_describes_the_real_results(dtype):
    real = *integer_lif_inputs(2, 5, 3, dtype), 4, True, "subtract", True
    fake = [value.detach().to("meta") if isinstance(value, torch.Tensor) else value for value in real]
    for described, computed in zip(integer_lif_operator(*fake), integer_lif_operator(*real), strict=True):
        assert (described.shape, described.dtype, described.stride()) == (
            computed.shape,
            computed.dtype,
            computed.stride(),
        )


def test_only_the_inputs_are_kept_for_the_backward_pass():
    inputs, kept = integer_lif_inputs(2, 100, 64), set()

    def pack(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = call(inputs, "numba", levels=4)
    del results
    assert kept == {tensor.untyped_storage().data_ptr() for tensor in inputs}


# 2 * 3 * 4 = 24 neuron steps; three neurons fire once, 2, 4 and -2 unit spikes or twice as many, which leave nothing
# behind
@pytest.mark.parametrize(
    ("decay", "reset", "decay_input", "wanted", "repeated"),
    [
        (
            0.5,
            "subtract",
            True,
            {"mul": 72, "add": 48, "select": 0, "state_elements": 4, "state_reads": 24, "state_writes": 24},
            5,
        ),
        (
            0.5,
            "zero",
            False,
            {"mul": 24, "add": 24, "select": 24, "state_elements": 4, "state_reads": 24, "state_writes": 24},
            13,
        ),
        (
            0.0,
            "subtract",
            True,
            {"mul": 0, "add": 0, "select": 0, "state_elements": 0, "state_reads": 0, "state_writes": 0},
            13,
        ),
        (
            0.0,
            "zero",
            True,
            {"mul": 0, "add": 0, "select": 0, "state_elements": 0, "state_reads": 0, "state_writes": 0},
            13,
        ),
    ],
)
def test_declared_cost_is_the_hand_counted_one(decay, reset, decay_input, wanted, repeated):
    current = torch.zeros(2, 3, 4)
    current[0, 0] = torch.tensor([4.0, 8.0, -4.0, 0.0])
    args = (current, torch.zeros(2, 4), torch.full((4,), decay), torch.ones(4), 8, True, reset, decay_input)
    declared = torch.ops.spikegpt.integer_lif.default.op_cost(args, {}, integer_lif_operator(*args))
    always = {
        "kind": "neuron",
        "div": 24,
        "compare": 48,
        "activation_reads": 24,
        "activation_writes": 24,
        "neuron_updates": 24,
    }
    assert declared == {**wanted, **always, "events_out": 3, "repeated_events": repeated}
    assert set(declared) - {"kind", "state_elements"} <= set(QUANTITIES) and declared["kind"] in KINDS


X = torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("call", "found", "wanted"),
    [
        (lambda: integer_lif(torch.zeros(4, 3)), "(4, 3)", "(B, T, C)"),
        (lambda: integer_lif(torch.zeros(2, 0, 3)), "(2, 0, 3)", "no empty side"),
        (lambda: integer_lif(X.long()), "int64", "floating-point"),
        (lambda: integer_lif(X, torch.zeros(2, 4)), "(2, 4)", "(2, 3)"),
        (lambda: integer_lif(X, torch.zeros(2, 3, dtype=torch.float64)), "float64", "float32"),
        (lambda: integer_lif(X, torch.zeros(2, 3, device="meta")), "meta", "one device"),
        (lambda: integer_lif(X, membrane_decay=1.5), "1.5", "at least 0"),
        (lambda: integer_lif(X, membrane_decay=1.0), "1.0", "below 1"),
        (lambda: integer_lif(X, membrane_decay=torch.zeros(4)), "(4,)", "(3,)"),
        (lambda: integer_lif(X, threshold=torch.ones(())), "()", "(3,)"),
        (lambda: integer_lif(X, threshold=torch.ones(3, device="meta")), "meta", "one device"),
        (lambda: integer_lif(X, threshold=0.0), "0.0", "above 0"),
        (lambda: integer_lif(X, threshold=math.nan), "nan", "above 0"),
        (lambda: integer_lif(X, levels=0), "0", "1 to 127"),
        (lambda: integer_lif(X, levels=128), "128", "1 to 127"),
        (lambda: integer_lif(X, levels=2.0), "2.0", "whole number"),
        (lambda: integer_lif(X, reset="soft"), "'soft'", "subtract"),
        (lambda: integer_lif(X, backend="cuda"), "'cuda'", "reference"),
        (lambda: integer_lif(X.double(), backend="numba"), "float64", "float32"),
    ],
)
def test_errors_say_what_was_found_and_what_is_wanted(call, found, wanted):
    with pytest.raises(ValueError) as caught:
        call()
    assert found in str(caught.value) and wanted in str(caught.value)


MEMORYLESS = [
    {"levels": levels, "signed": signed, "reset": reset}
    for levels, signed, reset in itertools.product((1, 4, 8), (False, True), ("subtract", "zero", "none"))
]


def memoryless(current, threshold, backend, dtype=None, **options):
    """Return (spikes, final potential, gradients) of neurons that are memoryless by their decay, the number 0."""
    spikes, final = integer_lif(current, membrane_decay=0, threshold=threshold, backend=backend, dtype=dtype, **options)
    grads = torch.autograd.grad((spikes, final), (current, threshold), cotangents_of((spikes, final)))
    return [spikes.detach(), final.detach(), *grads]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", MEMORYLESS, ids=lambda o: "-".join(map(str, o.values())))
def test_one_pass_without_memory_is_the_reference(options, size):
    current, _, _, threshold = integer_lif_inputs(*size)
    found, wanted = (memoryless(current, threshold, backend, **options) for backend in ("numba", "reference"))
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert_all_close(found[2:], wanted[2:])


@pytest.mark.parametrize("spikes_dtype", [None, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_one_pass_without_memory_is_the_reference_in_every_dtype(dtype, spikes_dtype):
    current, _, _, threshold = integer_lif_inputs(2, 63, 33, dtype)
    found, wanted = (
        memoryless(current, threshold, backend, spikes_dtype, levels=8, signed=True)
        for backend in ("numba", "reference")
    )
    assert found[0].dtype == (spikes_dtype or dtype) and torch.equal(found[0], wanted[0])
    assert_all_close(found, wanted, dtype if spikes_dtype is None else torch.bfloat16)


def test_several_tasks_of_one_pass_are_the_loop_over_time():
    current, _, decay, threshold = integer_lif_inputs(3, 257, 600, memoryless=True)
    spikes, final, grad_current, grad_threshold = memoryless(current, threshold, "numba", levels=4, signed=True)
    looped = integer_lif(current, membrane_decay=decay, threshold=threshold, backend="numba", levels=4, signed=True)
    assert torch.equal(spikes, looped[0]) and torch.equal(final, looped[1])
    grads = torch.autograd.grad(looped, (current, threshold), cotangents_of(looped))
    assert_all_close((grad_current, grad_threshold), grads)


@pytest.mark.parametrize("with_spikes", [True, False], ids=["beside the spikes", "alone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", MEMORYLESS, ids=lambda o: "-".join(map(str, o.values())))
def test_the_firing_rate_is_counted_with_the_spikes(options, dtype, with_spikes):
    current, _, _, threshold = integer_lif_inputs(3, 90, 130, dtype)
    results = []
    for backend in ("numba", "reference"):
        spikes, _ = integer_lif(current, membrane_decay=0, threshold=threshold, backend=backend, **options)
        # as large as a gradient of the spikes
        total = firing_rate(spikes, "auto" if backend == "numba" else "reference") * spikes.numel()
        total = total + (spikes * cotangents_of([spikes])[0]).sum() if with_spikes else total
        results.append([total.detach(), *torch.autograd.grad(total, (current, threshold))])
        assert hasattr(spikes, "_spikegpt_firing_rate") == (backend == "numba")
    assert_all_close(*results, dtype)


def test_a_final_potential_that_nobody_asks_for_has_no_gradient():
    current, _, _, threshold = integer_lif_inputs(2, 9, 33)
    spikes, final = integer_lif(current, membrane_decay=0.0, threshold=threshold, backend="numba")
    with_zeros = torch.autograd.grad(
        (spikes, final), (current, threshold), (torch.ones_like(spikes), torch.zeros_like(final)), retain_graph=True
    )
    assert all(map(torch.equal, torch.autograd.grad(spikes.sum(), (current, threshold)), with_zeros))
    spikes, final = integer_lif(current, membrane_decay=0.0, threshold=threshold, backend="numba", reset="zero")
    (grad,) = torch.autograd.grad(final.sum(), current)
    # where nothing fired the potential is the current itself
    assert torch.equal(grad[:, -1], (spikes[:, -1] == 0).float()) and not grad[:, :-1].any()


def test_without_memory_the_cost_is_the_loops():
    current, _, decay, threshold = (tensor.detach() for tensor in integer_lif_inputs(2, 9, 33, memoryless=True))
    costs = []
    for given in (0.0, decay):
        with OpCounter(Neurons(given, threshold)) as counter:
            counter.model(current)
        costs.append({name: getattr(counter.tally().total(), name) for name in QUANTITIES})
    assert costs[0] == costs[1] and costs[0]["events_out"] > 0


class Neurons(torch.nn.Module):
    def __init__(self, decay, threshold):
        super().__init__()
        self.decay, self.threshold = decay, threshold

    def forward(self, current):
        return integer_lif(current, membrane_decay=self.decay, threshold=self.threshold, levels=4, signed=True)


def test_the_memoryless_operators_keep_to_torchs_rules():
    current, _, _, threshold = integer_lif_inputs(2, 3, 5)
    torch.library.opcheck(
        memoryless_operator.definition, (current, threshold, 4, True, "subtract", True, torch.float32)
    )
