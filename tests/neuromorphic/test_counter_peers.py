"""The counter beside NeuroBench and SpikingJelly: equal where they are right, and which is right where they are not.

Where a peer's figure differs, the test counts single products one by one. It also asserts the figure that the peer gave
when this was written, so that a peer that is mended makes the test fail and say so.
"""

import pytest
import torch
from counting import SnnTorchStack, SpikingJellyStack, brute_force, count, linear, operations, reals, spikes
from torch import nn

from neuromorphic import OpCounter


def neurobench_counts(model, x, mode=torch.no_grad):
    """Return (MACs, ACs, Dense) per sample, and what OpCounter says of the same run."""
    workload = pytest.importorskip("neurobench.metrics.workload", reason="pip install --no-deps neurobench")
    wrapped = pytest.importorskip("neurobench.models").TorchModel(model)
    wrapped.register_hooks()
    try:
        with mode():
            with OpCounter(model) as counter:
                wrapped(x)
            found = workload.SynapticOperations()(wrapped, None, (x, None))
    finally:
        wrapped.cleanup_hooks()
    return (found["Effective_MACs"], found["Effective_ACs"], found["Dense"]), counter.tally().total()


def spikingjelly_counts(model, x, mode=torch.no_grad):
    """Return (MACs, SynOps, ACs)."""
    op_counter = pytest.importorskip(
        "spikingjelly.activation_based.op_counter", reason="pip install --no-deps spikingjelly"
    )
    counters = [op_counter.MACCounter(), op_counter.SynOpCounter(), op_counter.ACCounter()]
    with mode(), op_counter.DispatchCounterMode(counters):
        model(x)
    return tuple(counter.get_total() for counter in counters)


def assert_still(peer, found, known):
    assert found == known, (
        f"{peer} now says {found}; when this was written it said {known}. "
        "If it is mended, move this case to the equal ones"
    )


# equal --------------------------------------------------------------------------------------------------------------

# sizes of the batch are powers of two, so that a mean over samples is exact
DENSE_NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3)), (4, 8)),
    "linear on sequences": (
        lambda: nn.Sequential(nn.Linear(8, 10, bias=False), nn.ReLU(), nn.Linear(10, 3)),
        (4, 6, 8),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 4, 2, stride=2, bias=False)),
        (2, 3, 9),
    ),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, dilation=2),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(36, 5),
        ),
        (2, 2, 7, 7),
    ),
}
INPUTS = {
    "binary": spikes,
    "ternary": lambda *shape: spikes(*shape) * reals(*shape).sub(0.6).sign(),
    "graded": lambda *shape: reals(*shape, density=0.5),
}


@pytest.mark.parametrize("alphabet", INPUTS)
@pytest.mark.parametrize("net", DENSE_NETS)
def test_neurobench_counts_the_same_in_layers(net, alphabet):
    torch.manual_seed(0)
    make, shape = DENSE_NETS[net]
    model, x = make(), INPUTS[alphabet](*shape)
    model[0].weight.data *= spikes(*model[0].weight.shape, rate=0.7)
    per_sample, ours = neurobench_counts(model, x)
    assert tuple(number * len(x) for number in per_sample) == operations(ours)
    assert 0 < ours.effective_ops < ours.dense_ops


@pytest.mark.parametrize("drive", [spikes, reals])
def test_neurobench_counts_the_same_in_snntorch(drive):
    torch.manual_seed(0)
    model, x = SnnTorchStack(), drive(8, 4, 8)
    per_sample, ours = neurobench_counts(model, x)
    assert tuple(number * len(x) for number in per_sample) == operations(ours)
    assert ours.effective_acs > 0 and (ours.effective_macs > 0) == (drive is reals)


SPIKING_NETS = {
    "linear": (
        lambda: SpikingJellyStack(nn.Linear(8, 10), "LIF", nn.Linear(10, 4, bias=False), "LIF", nn.Linear(4, 6)),
        (8, 4, 8),
    ),
    "conv1d": (
        lambda: SpikingJellyStack(nn.Conv1d(3, 6, 3), "LIF", nn.Conv1d(6, 4, 2, padding=1, bias=False), "LIF"),
        (8, 2, 3, 9),
    ),
    "conv2d": (
        lambda: SpikingJellyStack(
            nn.Conv2d(2, 4, 3), "LIF", nn.Conv2d(4, 4, 3, padding=1, stride=2), "LIF", nn.Flatten(), nn.Linear(36, 5)
        ),
        (8, 2, 2, 7, 7),
    ),
}


@pytest.mark.parametrize("drive", [spikes, reals])
@pytest.mark.parametrize("net", SPIKING_NETS)
def test_both_peers_count_the_same_in_spikingjelly(net, drive):
    torch.manual_seed(0)
    make, shape = SPIKING_NETS[net]
    model, x = make(), drive(*shape)
    per_sample, ours = neurobench_counts(model, x)
    assert tuple(number * len(x) for number in per_sample) == operations(ours)
    assert spikingjelly_counts(model, x)[:2] == (ours.effective_macs, ours.effective_acs)
    assert ours.effective_acs > 0 and (ours.effective_macs > 0) == (drive is reals)
    assert ours.events_out == model.emitted > 0


def test_spikingjelly_counts_the_same_in_snntorch():
    torch.manual_seed(0)
    model, x = SnnTorchStack(), reals(8, 4, 8)
    macs, synops, _ = spikingjelly_counts(model, x)
    ours = count(model, x).total()
    assert (macs, synops) == (ours.effective_macs, ours.effective_acs)
    assert macs == 8 * 4 * 8 * 10 and synops > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_spikingjelly_counts_the_same_in_every_number_format(dtype):
    model, x = nn.Linear(64, 65, bias=False).to(dtype), spikes(33, 64).to(dtype)
    ours = count(model, x).total().effective_acs
    assert spikingjelly_counts(model, x) == (0, ours, ours)


# where a peer differs -----------------------------------------------------------------------------------------------


def test_neurobench_rounds_in_bfloat16():
    x, weight = spikes(7, 65), reals(31, 65)
    per_sample, ours = neurobench_counts(nn.Sequential(linear(weight)).bfloat16(), x.bfloat16())
    macs, acs, _ = brute_force(x, weight)
    assert operations(ours) == (macs, acs, 7 * 65 * 31)
    rounded = torch.tensor([macs, acs, 7 * 65 * 31]).bfloat16().tolist()
    assert rounded != [macs, acs, 7 * 65 * 31]
    assert_still("NeuroBench", [7 * number for number in per_sample], rounded)


def test_neurobench_overflows_in_float16():
    x, weight = torch.ones(33, 64), torch.full((32, 64), 0.5)
    model = nn.Sequential(linear(weight)).half()
    assert count(model, x.half()).total().effective_acs == brute_force(x, weight)[1] == 67_584
    with pytest.raises(OverflowError):
        neurobench_counts(model, x.half())


def test_neurobench_counts_a_layer_of_two_parents_twice():
    shared = linear(reals(8, 8))
    x = reals(4, 8)
    per_sample, ours = neurobench_counts(nn.Sequential(nn.Sequential(shared), nn.Sequential(shared)), x)
    single = brute_force(x, shared.weight)[0] + brute_force(shared(x), shared.weight)[0]
    assert ours.effective_macs == ours.dense_ops == single == 2 * 4 * 64
    assert_still("NeuroBench", 4 * per_sample[2], 2 * single)


class RawProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.raw = linear(reals(8, 8)), nn.Parameter(reals(8, 32))

    def forward(self, x):
        return self.layer(x) @ self.raw


def test_neurobench_does_not_see_a_product_outside_of_a_layer():
    model, x = RawProduct(), reals(4, 8)
    per_sample, ours = neurobench_counts(model, x)
    in_layer, raw = brute_force(x, model.layer.weight)[0], brute_force(model.layer(x), model.raw.t())[0]
    assert ours.effective_macs == in_layer + raw == 4 * 64 + 4 * 8 * 32
    assert_still("NeuroBench", 4 * per_sample[0], in_layer)


@pytest.mark.parametrize("form", ["bare layer", "transposed convolution"])
def test_neurobench_sees_nothing_and_says_zero(form):
    layer = {"bare layer": nn.Linear(5, 3), "transposed convolution": nn.Sequential(nn.ConvTranspose1d(5, 3, 1))}[form]
    x = spikes(4, 5) if form == "bare layer" else spikes(4, 5, 1)
    per_sample, ours = neurobench_counts(layer, x)
    assert operations(ours) == (0, brute_force(x.flatten(1), torch.ones(3, 5))[1], 4 * 5 * 3)
    assert_still("NeuroBench", per_sample, (0, 0, 0))


def test_neurobench_reports_a_recurrent_layer_as_free():
    manager = pytest.importorskip(
        "neurobench.metrics.manager.workload_manager", reason="pip install --no-deps neurobench"
    )
    workload, models = pytest.importorskip("neurobench.metrics.workload"), pytest.importorskip("neurobench.models")
    wrapped, x = models.TorchModel(nn.Sequential(nn.GRU(5, 3, batch_first=True))), reals(2, 4, 5)
    runner = manager.WorkloadMetricManager([workload.SynapticOperations])
    runner.register_hooks(wrapped)
    with torch.no_grad():
        found = runner.run_metrics(wrapped, wrapped(x), (x, None), 2, 2)
    runner.cleanup_hooks(wrapped)
    # three gates, each of 3 x (5 + 3)
    assert count(wrapped.net, x).total().dense_ops == 2 * 4 * 3 * 3 * (5 + 3)
    assert_still("NeuroBench", dict(found), {"SynapticOperations": 0.0})


def test_a_row_of_reals_does_not_make_multiplications_of_the_spikes_beside_it():
    x, weight = torch.cat([spikes(6, 5), reals(1, 5)]), reals(3, 5)
    per_sample, ours = neurobench_counts(nn.Sequential(linear(weight)), x)
    macs, acs, _ = brute_force(x, weight)
    assert (ours.effective_macs, ours.effective_acs) == (macs, acs) == (15, acs)
    assert_still("NeuroBench", (round(7 * per_sample[0]), per_sample[1]), (macs + acs, 0))
    assert_still("SpikingJelly", spikingjelly_counts(linear(weight), x)[:2], (7 * 15, 0))


def test_a_real_input_of_ternary_weights_is_accumulated():
    x, weight = reals(7, 5), (reals(3, 5, density=0.6) * (1 - 2 * spikes(3, 5))).sign()
    per_sample, ours = neurobench_counts(nn.Sequential(linear(weight)), x)
    # a weight of 1 or -1 is a spike of the transposed product
    macs, acs, _ = brute_force(weight, x)
    assert (ours.effective_macs, ours.effective_acs, ours.weight_side_acs) == (macs, acs, acs) == (0, acs, acs)
    assert_still("NeuroBench", (round(7 * per_sample[0]), per_sample[1]), (acs, 0))
    assert_still("SpikingJelly", spikingjelly_counts(linear(weight), x)[:2], (7 * 15, 0))


def test_spikingjelly_counts_nothing_in_inference_mode():
    x, weight = spikes(7, 5), reals(3, 5)
    with torch.inference_mode(), OpCounter(linear(weight)) as counter:
        counter.model(x)
    assert counter.tally().total().effective_acs == brute_force(x, weight)[1] > 0
    assert_still("SpikingJelly", spikingjelly_counts(linear(weight), x, torch.inference_mode), (0, 0, 0))


def test_spikingjelly_counts_a_sparse_real_input_as_dense():
    x, weight = reals(7, 5, density=0.3), reals(3, 5)
    ours = count(linear(weight), x).total()
    assert ours.effective_macs == brute_force(x, weight)[0] < 7 * 15
    assert_still("SpikingJelly", spikingjelly_counts(linear(weight), x), (7 * 15, 0, 0))


def test_spikingjelly_multiplies_by_ternary_spikes():
    x, weight = INPUTS["ternary"](7, 5), reals(3, 5)
    ours = count(linear(weight), x).total()
    assert x.min() == -1 and (ours.effective_macs, ours.effective_acs) == brute_force(x, weight)[:2]
    assert ours.effective_macs == 0
    assert_still("SpikingJelly", spikingjelly_counts(linear(weight), x), (7 * 15, 0, 0))


def test_both_peers_multiply_by_integer_spikes_and_know_no_unit_spikes():
    x, weight = 3 * spikes(7, 5), reals(3, 5)
    per_sample, ours = neurobench_counts(nn.Sequential(linear(weight)), x)
    macs, acs, units = brute_force(x, weight)
    assert (ours.effective_macs, ours.effective_acs, ours.unit_acs) == (macs, acs, units) == (macs, 0, 3 * macs)
    assert_still("NeuroBench", (round(7 * per_sample[0]), per_sample[1]), (macs, 0))
    assert_still("SpikingJelly", spikingjelly_counts(linear(weight), x)[:2], (7 * 15, 0))


def test_spikingjelly_adds_weights_that_are_zero():
    x, weight = spikes(7, 5), reals(3, 5, density=0.3)
    ours = count(linear(weight), x).total()
    assert ours.effective_acs == brute_force(x, weight)[1] < 3 * ours.nonzeros
    assert_still("SpikingJelly", spikingjelly_counts(linear(weight), x)[1], 3 * ours.nonzeros)


def test_spikingjelly_multiplies_by_padding():
    x, layer = reals(2, 3, 6), nn.Conv1d(3, 4, 3, padding=1, bias=False)
    # kernel position 1 meets 6 inputs, positions 0 and 2 meet 5
    assert count(layer, x).total().effective_macs == 2 * 3 * 4 * (5 + 6 + 5)
    assert_still("SpikingJelly", spikingjelly_counts(layer, x), (2 * 3 * 4 * (6 + 6 + 6), 0, 0))


class WeightedMean(nn.Module):
    """A WKV in plain torch: x (T, 2, C) holds keys and values."""

    def forward(self, x):
        above, below, outputs = torch.zeros_like(x[0, 0]), torch.zeros_like(x[0, 0]), []
        for key, value in x:
            weight = torch.exp(key)
            above, below = 0.5 * above + weight * value, 0.5 * below + weight
            outputs.append(above / below)
        return torch.stack(outputs)


def test_spikingjelly_sees_of_a_recurrence_only_its_additions():
    T, C = 8, 5
    found = {
        name: number for name, number in count(WeightedMean(), reals(T, 2, C)).total().elementwise.items() if number
    }
    assert found == {"mul": 3 * T * C, "add": 2 * T * C, "exp": T * C, "div": T * C}
    assert_still("SpikingJelly", spikingjelly_counts(WeightedMean(), reals(T, 2, C)), (0, 0, 2 * T * C))


def test_spikingjelly_counts_the_neurons_of_the_first_layer_only():
    op_counter = pytest.importorskip("spikingjelly.activation_based.op_counter")
    model, x = SpikingJellyStack("LIF", "LIF"), reals(6, 4, 8)
    states = op_counter.NeuronStateCounter()
    with torch.no_grad(), op_counter.DispatchCounterMode([states]):
        model(x)
    # a comparison for each neuron and step: the state of the second layer is not recognised while the first one's lives
    assert count(model, x).total().neuron_updates == 2 * 6 * 4 * 8
    assert_still("SpikingJelly", states.get_metric_counts()["Global"]["state_comps"], 6 * 4 * 8)
