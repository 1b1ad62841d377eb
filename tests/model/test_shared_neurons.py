"""`shared_neurons`: the products that read the stream read the same neurons; against a model with equal own ones."""

import dataclasses
from functools import partial

import pytest
import torch
from runs import MODEL, TRAIN

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import INPUT_NEURON, ModelConfig
from spikegpt.config.effects import idle_in_blocks
from spikegpt.evaluate.runs import evaluate_run
from spikegpt.generate.engine import Engine
from spikegpt.interop.weights import export_weights, import_weights
from spikegpt.measure.runs import measure_runs, neuron_places
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import firing_rate
from spikegpt.train import trainer as training
from spikegpt.train.convert import anneal, defaults_from, fit_neurons, start_from

SIZES = {"n_layer": 2, "n_embd": 24, "vocab_size": 50, "dropout": 0.0}
READERS = {"att": ("key", "value", "receptance"), "ffn": ("key", "receptance")}
IDS = torch.arange(14).view(2, 7)


def make(**changes) -> SpikeGPT:
    torch.manual_seed(0)
    return SpikeGPT(ModelConfig(**{**SIZES, "shared_neurons": True, **changes}))


@torch.no_grad()
def separated(model: SpikeGPT) -> SpikeGPT:
    """The same function with neurons and mixes of each product's own, all equal."""
    own = SpikeGPT(dataclasses.replace(model.config, shared_neurons=False), init=False)
    weights = dict(model.state_dict())
    for layer in range(model.config.n_layer):
        for half, names in READERS.items():
            path = f"blocks.{layer}.{half}"
            mix, threshold = weights.pop(f"{path}.time_mix"), weights.pop(f"{path}.input_neuron.log_threshold")
            for name in names:
                weights[f"{path}.time_mix_{name[0]}"] = mix
                weights[f"{path}.{name}_neuron.log_threshold"] = threshold
    own.load_state_dict(weights)
    return own


def test_one_layer_of_neurons_in_each_half_is_read_by_all_its_projections():
    model = make()
    C, F = 24, 96
    assert {name: count for name, count in model.synapses().items() if name.startswith("blocks.0.")} == {
        "blocks.0.att.input_neuron": 3 * C * C,
        "blocks.0.att.output_neuron": C * C,
        "blocks.0.ffn.input_neuron": C * (F + C),
        "blocks.0.ffn.value_neuron": F * C,
    }
    att = model.blocks[0].att
    assert model.sites()["blocks.0.att.input_neuron"].products == (att.key, att.value, att.receptance)
    assert len(model.sites()) == 2 * 5 and sum("time_mix" in name for name in model.state_dict()) == 2 * 2


@pytest.mark.parametrize("is_fused", [True, False])
def test_spikes_and_gradients_are_those_of_equal_neurons_of_their_own(is_fused):
    shared = make()
    with torch.no_grad():
        for name, parameter in shared.named_parameters():
            # no channel as the next one
            if "threshold" in name or "time_mix" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    own, outputs = separated(shared), []
    for model in (shared, own):
        if not is_fused:
            # somebody looks on
            for placed in model.sites().values():
                placed.neuron.register_forward_hook(lambda *_: None)
        logits, _, spikes = model(IDS)
        # every product's spikes weigh alike
        rates = sum(firing_rate(spike) * model.synapses().get(name, 0) for name, spike in spikes.items())
        (logits.square().mean() + rates / 1000).backward()
        outputs.append(logits)
    assert torch.equal(*outputs)
    grads = {name: parameter.grad for name, parameter in own.named_parameters()}
    for name, parameter in shared.named_parameters():
        path = name.rpartition(".time_mix")[0] or name.rpartition(".input_neuron")[0]
        if name.endswith(".time_mix"):
            wanted = sum(grads[f"{path}.time_mix_{reader[0]}"] for reader in READERS[path[-3:]])
        elif ".input_neuron." in name:
            wanted = sum(grads[f"{path}.{reader}_neuron.log_threshold"] for reader in READERS[path[-3:]])
        else:
            wanted = grads[name]
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item(), msg=name)


@pytest.mark.parametrize("neuron", [None, dataclasses.replace(INPUT_NEURON, membrane_decay=0.5, learnable_decay=True)])
@pytest.mark.parametrize("cuts", [(3, 4), (1,) * 7])
def test_in_pieces_it_reads_as_at_once(neuron, cuts):
    model = make(neuron=neuron).eval()
    whole, state, logits = model(IDS), None, []
    for piece in IDS.split(cuts, dim=1):
        found = model(piece, state)
        state, logits = found.state, [*logits, found.logits]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, whole.state, rtol=1e-4, atol=1e-4)


def test_it_is_an_option_of_the_spike_driven_rwkv4_and_off_in_older_files():
    assert not ModelConfig.from_dict({"n_layer": 2}).shared_neurons
    with pytest.raises(ValueError, match="shared_neurons is of the mixer rwkv4, not of rwkv9; leave it out"):
        ModelConfig(mixer="rwkv9", shared_neurons=True)
    for spiking in ("none", "output"):
        config = ModelConfig(**SIZES, spiking=spiking, shared_neurons=True)
        assert SpikeGPT(config).state_dict().keys() == make(spiking=spiking, shared_neurons=False).state_dict().keys()
        assert "shared_neurons" in idle_in_blocks(config)


# --- from dense weights --------------------------------------------------------------------------------------------

SHARED = dataclasses.replace(MODEL, dropout=0.0, binary_embedding=False, shared_neurons=True)
TEXT = torch.randint(256, (3, 33), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dense(make_run):
    return make_run("dense", SHARED.twin(), steps=30, lr=1e-2)


@torch.no_grad()
def test_without_neurons_a_converted_model_is_the_dense_one_with_its_mixes_joined(dense):
    model, twin = SpikeGPT(SHARED, init=False), load_model(dense)[0]
    start_from(model, dense, TEXT)
    for half, name in (
        (half, name) for block in twin.blocks for half, name in ((block.att, "att"), (block.ffn, "ffn"))
    ):
        own = [getattr(half, f"time_mix_{reader[0]}") for reader in READERS[name]]
        columns = [getattr(half, reader).weight.square().sum(dim=0) for reader in READERS[name]]
        joined = sum(mix * column for mix, column in zip(own, columns, strict=True)) / sum(columns)
        for mix in own:
            mix.copy_(joined)
    anneal(model.train(), 0.0)
    found, wanted = model(TEXT).logits, twin(TEXT).logits
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_converting_draws_no_random_number(dense):
    model = SpikeGPT(SHARED, init=False)
    before = torch.get_rng_state()
    start_from(model, dense, TEXT)
    assert torch.equal(before, torch.get_rng_state())


@torch.no_grad()
def test_thresholds_are_raised_for_all_products_together_and_first_where_none_of_them_reads(dense):
    rates = {}

    def count(neuron, inputs: tuple, name: str) -> None:
        rates[name] = (inputs[0].abs() >= neuron.threshold).float().mean((0, 1))

    model = SpikeGPT(SHARED, init=False)
    start_from(model, dense, TEXT)
    # half of the channels lead nowhere in one of three products, and in both of two
    att, ffn = model.blocks[0].att, model.blocks[0].ffn
    for product in (att.key, ffn.key, ffn.receptance):
        product.weight[:, ::2] = 0
    fit_neurons(model, TEXT, 0.2)
    for name, placed in model.sites().items():
        placed.neuron.register_forward_pre_hook(partial(count, name=name))
    anneal(model.train(), 0.0)
    model(TEXT)
    synapses = model.synapses()
    cost = sum(rates[name].mean().item() * count for name, count in synapses.items()) / sum(synapses.values())
    assert cost == pytest.approx(0.2, rel=0.05)
    assert rates["blocks.0.ffn.input_neuron"][::2].max() == 0 < rates["blocks.0.att.input_neuron"][::2].mean()


def test_only_dense_weights_change_their_neurons(trained, tmp_path, cache):
    model, _ = defaults_from(trained, shared_neurons=True)
    with pytest.raises(SpikegptError, match="of shared_neurons False, which --shared-neurons cannot change to True"):
        training.train(model, TRAIN, tmp_path / "run", start=trained, cache=cache, quiet=True)


# --- a run of it ---------------------------------------------------------------------------------------------------


def test_a_run_is_trained_measured_and_decoded(dense, tmp_path, cache):
    run = tmp_path / "run"
    training.train(SHARED, dataclasses.replace(TRAIN, anneal=0.5), run, start=dense, cache=cache, quiet=True)
    model, _ = load_model(run)
    evaluated = evaluate_run(run, limit=256, cache=cache)["stream"]
    synapses = model.synapses()
    weighted = sum(evaluated["firing_rates"][name] * count for name, count in synapses.items())
    assert evaluated["firing_rate"] == pytest.approx(weighted / sum(synapses.values()))
    (measured,) = measure_runs([run], limit=256, profiles=[], cache=cache)
    assert measured.firing_rate == evaluated["firing_rate"]
    assert neuron_places(model, ["blocks.1.att.input_neuron"])["blocks.1.att.input_neuron"].part == "att input"
    assert not Engine(model).reason
    export_weights(run, tmp_path / "exported", "auto")
    import_weights(tmp_path / "exported", tmp_path / "again")
    again = load_model(tmp_path / "again")[0]
    assert again.config == model.config and torch.equal(again(TEXT).logits, model(TEXT).logits)
