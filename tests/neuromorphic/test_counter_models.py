"""What the counter says of SpikeGPT and its dense twin, against loops that know nothing of the counter."""

import numpy as np
import pytest
import torch
from counting import amounts
from golden import load

from neuromorphic import OpCounter
from spikegpt.config.model import ModelConfig
from spikegpt.config.neuron import NeuronConfig
from spikegpt.kernels import lif, wkv
from spikegpt.model.initial import calibrate_thresholds
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import verified_spikes
from spikegpt.neuron.adapters import SnnTorchNeuron, SpikingJellyNeuron
from spikegpt.neuron.lif import LIF

SIZES = {"n_layer": 2, "n_embd": 12, "ctx_len": 64, "vocab_size": 31}


def make(spiking="output", dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(spiking=spiking, **SIZES), **options)
    # RWKV begins with matrices of zeros; a trained model has none
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    if spiking == "input":
        calibrate_thresholds(model, 0.2)
    return model.to(dtype).eval()


@pytest.fixture(autouse=True)
def unchecked_spikes():
    """The check of the spikes is work too, which is not to be counted."""
    with verified_spikes(False):
        yield


IDS = torch.randint(0, 31, (3, 11), generator=torch.Generator().manual_seed(1))


def count(model, *parts, ids=IDS):
    """Read the ids in parts of the given lengths, with carried state."""
    with torch.no_grad(), OpCounter(model, strict=True) as counter, counter.phase("text"):
        state = None
        for part in ids.split(list(parts) or ids.shape[1], dim=1):
            state = model(part, state).state
    return counter.tally()


@pytest.mark.parametrize("spiking", ["output", "none", "input"])
@pytest.mark.parametrize("parts", [(4, 7), (1, 10), (1,) * 11])
def test_parallel_chunked_and_recurrent_forms_cost_the_same(spiking, parts):
    model = make(spiking, torch.float64) if spiking == "none" else make(spiking)
    assert amounts(count(model, *parts)) == amounts(count(model))
    assert count(model, *parts).footprint == count(model).footprint


def test_the_published_block_performs_no_accumulation():
    tally = count(make("output"))
    products = tally.select(kind="matmul")
    assert len(products) == 2 * 7 + 1
    assert all(
        counts.effective_acs == 0 and counts.alphabet == "real" and not counts.is_spike_driven
        for counts in products.values()
    )
    assert tally.total().events_out > 0


@pytest.mark.parametrize("shared_neurons", [False, True])
@pytest.mark.parametrize("spiking_head", [False, True])
def test_every_product_of_the_spike_driven_block_accumulates(spiking_head, shared_neurons):
    torch.manual_seed(0)
    config = ModelConfig(spiking="input", spiking_head=spiking_head, shared_neurons=shared_neurons, **SIZES)
    model = SpikeGPT(config).eval()
    tally = count(model)
    products = tally.select(kind="matmul")
    assert len(products) == 2 * 7 + 1
    with torch.no_grad():
        spikes = model(IDS).spikes
    paths = {module: path for path, module in model.named_modules()}
    sources = {paths[product]: name for name, placed in model.sites().items() for product in placed.products}
    for site, counts in products.items():
        if site.module == "head" and not spiking_head:
            assert (counts.alphabet, counts.effective_acs) == ("real", 0) and counts.effective_macs > 0
            continue
        read, product = spikes[sources[site.module]], model.get_submodule(site.module)
        # by hand: each spike of level n costs n accumulations into every output
        assert counts.is_spike_driven
        assert counts.events_in == read.count_nonzero().item()
        levels = read.abs().sum(dim=-1)[read.abs().amax(dim=-1) > 1].sum().item()
        units = read.abs().sum(dim=-1)[read.abs().amax(dim=-1) == 1].sum().item()
        assert (counts.unit_acs, counts.effective_acs) == (levels * product.out_features, units * product.out_features)


def test_dense_products_are_those_of_the_formula():
    # 13 d^2 per layer and d V for the head
    for spiking in ("output", "none", "input"):
        tally = count(make(spiking))
        assert tally.total(kind="matmul").dense_ops == 33 * (2 * 13 * 12**2 + 12 * 31)
        assert tally.token_count() == 33


def test_the_twin_differs_by_its_neurons_only():
    spiking, twin = count(make("output")), count(make("none"))
    assert spiking.total(kind="scan") == twin.total(kind="scan")
    assert twin.total(kind="neuron").calls == 0
    neuron = spiking.total(kind="neuron")
    # 2 neurons per channel and layer by our kernel, and the binary embedding
    assert neuron.neuron_updates == 33 * 12 * (2 * 2 + 1)
    assert (neuron.mul, neuron.add, neuron.select) == (33 * 12 * 4 * 2, 33 * 12 * 4, 33 * 12 * 4)
    assert spiking.footprint.state - twin.footprint.state == 2 * 2 * 12
    # token shift of both halves, and the three sums of the WKV
    assert twin.footprint.state == 2 * 12 * (2 + 3)
    assert twin.total().state_reads == twin.total().state_writes == 33 * 2 * 12 * (2 + 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dense_counts_do_not_depend_on_the_number_format(dtype):
    model = make("none")
    exact, half = count(model), count(model.to(dtype))
    for kind in ("embedding", "norm", "scan", "elementwise"):
        assert exact.total(kind=kind).elementwise == half.total(kind=kind).elementwise
    assert exact.total().dense_ops == half.total().dense_ops


def test_counting_does_not_change_what_is_counted():
    model = make()
    with torch.no_grad():
        plain = model(IDS)
        with OpCounter(model):
            counted = model(IDS)
    assert torch.equal(plain.logits, counted.logits)


class Number:
    """A number that counts what is done to it."""

    def __init__(self, value, done):
        self.value, self.done = value, done

    def _apply(self, operation, value):
        self.done[operation] = self.done.get(operation, 0) + 1
        return Number(value, self.done)

    def __add__(self, other):
        return self._apply("add", self.value + other.value)

    def __sub__(self, other):
        return self._apply("add", self.value - other.value)

    def __mul__(self, other):
        return self._apply("mul", self.value * other.value)

    def __truediv__(self, other):
        return self._apply("div", self.value / other.value)

    def exp(self):
        return self._apply("exp", float(np.exp(self.value)))

    def maximum(self, other):
        return self._apply("compare", max(self.value, other.value))

    def at_least(self, other):
        return self._apply("compare", float(self.value >= other.value))

    def choose(self, yes, no):
        return self._apply("select", yes.value if self.value else no.value)


def declared(function, *args, **kwargs):
    class Module(torch.nn.Module):
        def forward(self, _):
            return function(*args, **kwargs)

    with torch.no_grad(), OpCounter(Module(), strict=True) as counter:
        counter.model(torch.zeros(1))
    (counts,) = (counts for site, counts in counter.tally().sites.items() if "::" in site.operator)
    return counts


def test_the_wkv_declares_what_a_loop_of_counting_numbers_does():
    B, T, C = 2, 3, 5
    counts = declared(wkv, torch.zeros(C), torch.zeros(C), torch.ones(B, T, C), torch.ones(B, T, C))
    done = {}
    decay, first, k, v, p, a, b = (Number(value, done) for value in (-1.0, 0.5, 0.3, 0.2, 0.0, 0.0, 0.0))
    scale = p.maximum(first + k)
    past, present = (p - scale).exp(), (first + k - scale).exp()
    done["add"] -= 1  # first + k is needed twice and computed once
    (past * a + present * v) / (past * b + present)
    faded = p + decay
    scale = faded.maximum(k)
    past, present = (faded - scale).exp(), (k - scale).exp()
    past * a + present * v, past * b + present
    assert {name: number for name, number in counts.elementwise.items() if number} == {
        name: number * B * T * C for name, number in done.items()
    }
    assert (counts.state_reads, counts.state_writes) == (3 * B * T * C, 3 * B * T * C)


@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
@pytest.mark.parametrize("decay_input", [True, False])
def test_the_neuron_declares_what_a_loop_of_counting_numbers_does(reset, decay_input):
    current = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)) * 2
    counts = declared(lif, current, reset=reset, decay_input=decay_input)
    done, zero = {}, Number(0.0, {})
    decay, gain, threshold, u, i = (Number(value, done) for value in (0.5, 0.5, 1.0, 0.2, 1.7))
    charged = decay * u + (gain * i if decay_input else i)
    spike = charged.at_least(threshold)
    if reset != "none":
        spike.choose(zero, charged) if reset == "zero" else charged - threshold
    assert {name: number for name, number in counts.elementwise.items() if number} == {
        name: number * 30 for name, number in done.items()
    }
    assert counts.events_out == int(lif(current, reset=reset, decay_input=decay_input)[0].sum())


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_the_plain_loop_and_the_kernel_emit_the_same_events(backend):
    model = make(neuron=lambda site: LIF(site.channels, NeuronConfig(), backend=backend))
    neuron = count(model).total(module="blocks")
    assert neuron.events_out == sum(int(spikes.sum()) for name, spikes in model(IDS).spikes.items() if name != "emb")


def test_foreign_neurons_declare_their_state_and_their_spikes_are_seen():
    snntorch = pytest.importorskip("snntorch")
    neuron_module = pytest.importorskip("spikingjelly.activation_based.neuron")
    factories = (
        lambda site: SnnTorchNeuron(snntorch.Leaky(beta=0.5)),
        lambda site: SpikingJellyNeuron(neuron_module.LIFNode(step_mode="m")),
    )
    for factory in factories:
        model = make(neuron=factory)
        with torch.no_grad(), OpCounter(model) as counter:
            spikes = model(IDS).spikes
        tally = counter.tally()
        assert tally.footprint.state == 2 * 12 * (2 + 3 + 2)
        assert tally.total().events_out == sum(int(spike.sum()) for spike in spikes.values())


def test_golden_counts_equal_an_independent_loop_over_stored_spikes_and_weights():
    model, arrays, ids, _ = load("spikegpt_train_a", torch.float64)
    with torch.no_grad(), OpCounter(model.eval(), strict=True) as counter:
        model(ids)
    tally = counter.tally()
    weights = {
        key.removeprefix("param."): arrays[key].astype(np.float64) for key in arrays.files if key.startswith("param.")
    }
    for module, x in inputs_of_products(weights, arrays, ids.numpy()).items():
        matrix = weights[f"{module}.weight"]
        pairs = sum(int(np.count_nonzero((row[None, :] != 0) & (matrix != 0))) for row in x.reshape(-1, x.shape[-1]))
        counts = tally.total(module=module)
        assert (counts.effective_macs, counts.effective_acs) == (pairs, 0), module
        assert counts.dense_ops == x.size * len(matrix)
        assert counts.nonzeros == np.count_nonzero(x)
    for layer in (0, 1):
        for half, name in ((1, "time_mix_neuron"), (2, "channel_mix_neuron")):
            assert tally.total(module=f"blocks.{layer}.{name}").events_out == int(
                arrays[f"spk.{layer}.lif{half}"].sum()
            )


def inputs_of_products(weights, arrays, ids):
    """module -> input (B, T, C) of its matrix product, from the stored spikes, in numpy."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def mix(x, name):
        before = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
        return x * weights[name] + before * (1 - weights[name])

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    inputs = {}
    x = norm((weights["emb.weight"][ids] >= 0).astype(np.float64), "blocks.0.ln0")
    for layer in (0, 1):
        att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
        normed = norm(x, f"blocks.{layer}.ln1")
        for name in ("key", "value", "receptance"):
            inputs[f"{att}.{name}"] = mix(normed, f"{att}.time_mix_{name[0]}")
        k, v, r = (
            inputs[f"{att}.{name}"] @ weights[f"{att}.{name}.weight"].T for name in ("key", "value", "receptance")
        )
        inputs[f"{att}.output"] = sigmoid(r) * weighted_mean(
            weights[f"{att}.time_decay"], weights[f"{att}.time_first"], k, v
        )
        x = x + arrays[f"spk.{layer}.lif1"]
        normed = norm(x, f"blocks.{layer}.ln2")
        for name in ("key", "receptance"):
            inputs[f"{ffn}.{name}"] = mix(normed, f"{ffn}.time_mix_{name[0]}")
        inputs[f"{ffn}.value"] = np.maximum(inputs[f"{ffn}.key"] @ weights[f"{ffn}.key.weight"].T, 0) ** 2
        x = x + arrays[f"spk.{layer}.lif2"]
    return inputs | {"head": norm(x, "ln_out")}


def weighted_mean(time_decay, time_first, k, v):
    """The WKV by its definition: all weights written out, without a state."""
    decay, out = np.exp(time_decay), np.empty_like(v)
    for t in range(k.shape[1]):
        ages = np.arange(t - 1, -1, -1)[None, :, None]
        weight = np.concatenate([np.exp(k[:, :t] - ages * decay), np.exp(time_first + k[:, t : t + 1])], axis=1)
        out[:, t] = (weight * v[:, : t + 1]).sum(1) / weight.sum(1)
    return out
