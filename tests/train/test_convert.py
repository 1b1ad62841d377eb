"""Training that begins with trained weights: dense ones turn spiking without a change of a logit, then are annealed."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from runs import MODEL, TRAIN, break_off, weights_of

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import SPIKING, ModelConfig, NeuronConfig
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron.lif import LIF
from spikegpt.neuron.thresholds import best_thresholds
from spikegpt.train import convert
from spikegpt.train import trainer as training
from spikegpt.train.convert import anneal, defaults_from, fit_neurons, start_from

DENSE = dataclasses.replace(MODEL, spiking="none", neuron=None, dropout=0.0)
IDS = torch.randint(256, (3, 33), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dense(make_run):
    """A trained dense run: an untrained one has zero matrices, whose currents say nothing."""
    return make_run("dense", DENSE, steps=30, lr=1e-2)


def spiking_config(**changes) -> ModelConfig:
    return dataclasses.replace(DENSE, **{"spiking": "input", "neuron": None, "binary_embedding": False, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spiking_head": True},
        {"hidden_levels": 1},
        {"neuron": NeuronConfig()},
        {"neuron": NeuronConfig(membrane_decay=0.3, learnable_decay=True, learnable_threshold=True)},
        {"spiking": "output"},
        {"spiking": "output", "neuron": NeuronConfig(threshold=0.25)},
        {"spiking": "output", "neuron": NeuronConfig(threshold=0.25, learnable_threshold=True)},
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_with_its_neurons_left_out_the_converted_model_is_the_dense_one(dense, changes, share):
    model = SpikeGPT(spiking_config(**changes), init=False)
    start_from(model, dense, IDS, share)
    model.train()
    anneal(model, 0.0)
    with torch.no_grad():
        found, wanted = model(IDS).logits, load_model(dense)[0](IDS).logits
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_with_the_fitted_thresholds_all_spikes_come_nearer_to_the_dense_model_than_with_others(dense, shift):
    wanted = load_model(dense)[0](IDS).logits
    errors = []
    for change in (0.0, shift):
        model = SpikeGPT(spiking_config(), init=False)
        start_from(model, dense, IDS)
        for neuron in (module for module in model.modules() if isinstance(module, LIF)):
            neuron.log_threshold.data += change
        errors.append((model.eval()(IDS).logits - wanted).square().mean().item())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("share", [0.3, 0.1])
@torch.no_grad()
def test_thresholds_are_raised_until_spikes_cost_their_share_and_first_where_nothing_reads_them(dense, share):
    # half of the channels of two products lead nowhere
    weights = load_model(dense)[0]
    for product in (weights.blocks[0].att.key, weights.blocks[1].ffn.value):
        product.weight[:, ::2] = 0
    model = SpikeGPT(spiking_config(), init=False)
    model.load_state_dict(weights.state_dict(), strict=False)
    fit_neurons(model, IDS, share)
    rates = {}

    def count(neuron: LIF, inputs: tuple, name: str) -> None:
        rates[name] = (inputs[0].abs() >= neuron.threshold).float().mean((0, 1))

    for name, placed in model.sites().items():
        placed.neuron.register_forward_pre_hook(partial(count, name=name))
    # the currents that they were fitted to
    model.train()
    anneal(model, 0.0)
    model(IDS)
    synapses = model.synapses()
    cost = sum(rates[name].mean().item() * count for name, count in synapses.items()) / sum(synapses.values())
    assert cost == pytest.approx(share, rel=0.05)
    for name in ("blocks.0.att.key_neuron", "blocks.1.ffn.value_neuron"):
        assert rates[name][::2].max() == 0 < rates[name][1::2].mean()


def test_the_best_threshold_of_two_values_is_half_the_larger():
    # by hand: one level is worth two thresholds, so 0 and 4 are met exactly by a threshold of 2
    currents = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    neuron = LIF(2, NeuronConfig(learnable_threshold=True))
    threshold = best_thresholds(currents, neuron)
    # a step of the search is a factor of 1.21
    assert 2 / 1.21 < threshold[0] < 2 * 1.21
    assert threshold[1] == 1


def test_a_worth_of_one_and_one_level_th_thresholds_errs_least(monkeypatch):
    monkeypatch.setattr(convert, "FITTED_CURRENTS", 200_000)
    currents = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for levels, least in ((1, 0.19), (2, 0.10), (4, 0.044), (8, 0.017)):
        neuron = LIF(
            1,
            NeuronConfig(
                levels=levels,
                signed=True,
                surrogate="rectangular",
                slope=1,
                detach_reset=True,
                learnable_threshold=True,
            ),
        )
        threshold = best_thresholds(currents[:, None], neuron)
        spikes = currents.sign() * (currents.abs() / threshold).floor().clamp(max=levels)
        errors = [
            (currents - worth * threshold * spikes).square().mean().item() for worth in torch.linspace(1, 2.5, 31)
        ]
        at_our_worth = (currents - (1 + 1 / levels) * threshold * spikes).square().mean().item()
        assert at_our_worth < 1.02 * min(errors) and at_our_worth == pytest.approx(least, rel=0.05)


def test_in_training_a_share_of_the_neurons_spikes_and_in_evaluation_all():
    neuron = LIF(512, NeuronConfig(threshold=0.3, decay_input=False, membrane_decay=0.0))
    neuron.spike_share = 0.25
    current = torch.rand(1, 64, 512) + 0.001
    spikes = neuron(current)[0]
    real = spikes == current / 0.6
    assert 0.73 < real.float().mean() < 0.77
    assert torch.equal(spikes[~real], (current >= 0.3).float()[~real])
    assert set(neuron.eval()(current)[0].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("spiking", SPIKING)
def test_training_begins_with_the_weights_of_the_same_kind(make_run, tmp_path, cache, spiking):
    config = dataclasses.replace(MODEL, spiking=spiking, neuron=None)
    first = make_run("first", config)
    training.train(
        config,
        dataclasses.replace(TRAIN, steps=1, lr=0.0, lr_final=0.0),
        tmp_path / "second",
        start=first,
        cache=cache,
        quiet=True,
    )
    assert weights_of(tmp_path / "second") == weights_of(first)


def test_the_run_remembers_where_it_started_and_evaluates_that(dense, tmp_path, cache):
    run = tmp_path / "run"
    training.train(spiking_config(), dataclasses.replace(TRAIN, anneal=0.5), run, start=dense, cache=cache, quiet=True)
    assert json.loads((run / "config.json").read_text())["started_from"] == str(dense)
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["step"], first["kind"]) == (0, "valid") and first["bits_per_byte"] < 7.9


@pytest.mark.parametrize("after", [0, 3, 7])
def test_broken_annealing_ends_with_the_weights_of_the_unbroken_one(dense, monkeypatch, tmp_path, cache, after):
    changes = {"model": spiking_config(), "start": dense, "anneal": 0.8}
    unbroken = tmp_path / "unbroken"
    training.train(
        spiking_config(), dataclasses.replace(TRAIN, anneal=0.8), unbroken, start=dense, cache=cache, quiet=True
    )
    break_off(monkeypatch, tmp_path / "broken", cache, after, **changes)
    torch.manual_seed(99)
    training.resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(tmp_path / "broken") == weights_of(unbroken)


def test_a_run_broken_before_its_first_checkpoint_starts_from_the_same_weights(dense, monkeypatch, tmp_path, cache):
    config = dataclasses.replace(TRAIN, steps=2)
    training.train(DENSE, config, tmp_path / "unbroken", start=dense, cache=cache, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "_evaluate", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            training.train(DENSE, config, tmp_path / "broken", start=dense, cache=cache, quiet=True)
    training.resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "unbroken")


def test_the_best_model_is_one_with_the_whole_budget_and_all_neurons(dense, tmp_path, cache):
    config = dataclasses.replace(TRAIN, anneal=0.5, synop_warmup=1.0, lr=1.0, lr_final=1.0, grad_clip=0.0)
    training.train(spiking_config(), config, tmp_path / "run", start=dense, cache=cache, quiet=True)
    states = [json.loads(path.read_text()) for path in (tmp_path / "run" / "checkpoints").glob("*/training.json")]
    assert [state["best"]["step"] for state in states if state["best"]] == [12]


def test_what_is_frozen_stays_and_the_rest_moves(dense, tmp_path, cache):
    config = dataclasses.replace(TRAIN, freeze=("emb.*", "blocks.0.*"))
    training.train(DENSE, config, tmp_path / "run", start=dense, cache=cache, quiet=True)
    before, after = load_model(dense)[0].state_dict(), load_model(tmp_path / "run")[0].state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {name for name in before if name.startswith(("emb.", "blocks.0."))}


def test_defaults_take_the_sizes_and_the_tokenizer_and_anneal_new_neurons(dense):
    model, tuning = defaults_from(dense)
    assert (model, tuning.anneal) == (DENSE, 0.0) and tuning.tokenizer.endswith("tokenizer.json")
    model, converting = defaults_from(dense, spiking="input")
    assert model == spiking_config() and converting.anneal > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dataclasses.replace(DENSE, n_layer=3), "of n_layer 2, which --n-layer cannot change to 3"),
        (dataclasses.replace(DENSE, n_embd=24), "of n_embd 16, which --n-embd cannot change to 24"),
        (spiking_config(n_embd=24), "of n_embd 16, which --n-embd cannot change to 24"),
    ],
)
def test_weights_of_other_sizes_are_named(dense, tmp_path, cache, model, message):
    with pytest.raises(SpikegptError, match=message):
        training.train(model, TRAIN, tmp_path / "run", start=dense, cache=cache, quiet=True)
    assert not (tmp_path / "run").exists()


def test_only_dense_weights_become_another_blocks(trained, tmp_path, cache):
    with pytest.raises(SpikegptError, match="has --spiking input, wanted is output; only dense weights"):
        training.train(
            dataclasses.replace(MODEL, spiking="output", neuron=None),
            TRAIN,
            tmp_path / "run",
            start=trained,
            cache=cache,
        )


def test_another_vocabulary_than_the_models_is_refused(dense, tmp_path, cache):
    with pytest.raises(SpikegptError, match=r"the tokenizer is not that of .*; leave out --tokenizer"):
        config = dataclasses.replace(TRAIN, tokenizer="bpe", bpe_vocab_size=300)
        training.train(DENSE, config, tmp_path / "run", start=dense, cache=cache, quiet=True)


def test_fitting_leaves_the_model_as_it_was_otherwise(dense):
    model = SpikeGPT(spiking_config()).train()
    fit_neurons(model, IDS)
    assert model.training and all(module.spike_share == 1.0 for module in model.modules() if isinstance(module, LIF))
    assert not any(module._forward_pre_hooks for module in model.modules())
