import dataclasses

import pytest

from spikegpt.config import PRESETS, ModelConfig, NeuronConfig, SamplingConfig, TrainConfig, model_preset, train_preset


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_valid_and_survives_a_dictionary(preset):
    config = model_preset(preset)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert TrainConfig.from_dict(train_preset(preset).to_dict()) == train_preset(preset)


def test_unknown_key_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="no key 'n_layers'; did you mean 'n_layer'"):
        ModelConfig.from_dict({"n_layers": 3})


def test_unknown_nested_key_is_an_error():
    with pytest.raises(ValueError, match="NeuronConfig has no key 'tau'"):
        ModelConfig.from_dict({"neuron": {"tau": 2}})


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'huge'; known: tiny, small"):
        model_preset("huge")


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().n_layer = 3


def test_twin_differs_in_one_field():
    config = model_preset("small")
    assert dataclasses.replace(config.twin(), spiking="input") == config


def test_each_block_has_its_own_neuron():
    assert ModelConfig(spiking="input").neuron.alphabet == (-4, 4)
    assert ModelConfig(spiking="input").hidden_neuron.alphabet == (0, 8)
    assert ModelConfig(spiking="output").neuron == NeuronConfig() and NeuronConfig().alphabet == (0, 1)
    assert ModelConfig.from_dict(ModelConfig(spiking="input").to_dict()) == ModelConfig(spiking="input")


def test_tau_two_is_decay_one_half():
    assert NeuronConfig.from_tau(2.0).membrane_decay == 0.5
    assert NeuronConfig(membrane_decay=0.75).tau == 4.0


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (NeuronConfig, {"levels": 0}, "levels must be a whole number from 1 to 127, got 0"),
        (NeuronConfig, {"signed": True}, "needs surrogate='rectangular', slope=1, detach_reset=True"),
        (ModelConfig, {"hidden_levels": 128}, "hidden_levels must be a whole number from 1 to 127"),
        (TrainConfig, {"synop_budget": 1.0}, r"synop_budget must lie in \[0, 1\)"),
        (ModelConfig, {"n_layer": 0}, "n_layer must be a whole number of at least 1, got 0"),
        (ModelConfig, {"n_embd": 2.5}, "n_embd must be a whole number"),
        (ModelConfig, {"spiking": "always"}, "spiking must be one of none, output, input, got 'always'"),
        (ModelConfig, {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        (NeuronConfig, {"membrane_decay": 1.0}, "membrane_decay must be at least 0 and below 1, got 1.0"),
        (NeuronConfig, {"membrane_decay": 0.0, "learnable_decay": True}, "membrane_decay must be above 0"),
        (NeuronConfig, {"reset": "subtract", "reset_potential": -1.0}, "rests at 0"),
        (NeuronConfig, {"threshold": 0.0}, "must exceed reset_potential"),
        (NeuronConfig, {"surrogate": "triangle"}, "surrogate must be one of atan"),
        (TrainConfig, {"steps": 0}, "steps must be at least 1, got 0"),
        (TrainConfig, {"lr": 1e-5, "lr_final": 1e-3}, "want 0 <= lr_final <= lr"),
        (TrainConfig, {"data": ()}, "data names no text"),
        (TrainConfig, {"firing_rate_target": 1.5}, "between 0 and 1, got 1.5"),
    ],
)
def test_bad_value_is_refused_by_name(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


@pytest.mark.parametrize(
    "changes", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"max_tokens": 0}, {"stop": ("",)}], ids=str
)
def test_bad_sampling_setting_is_refused_by_name(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        SamplingConfig(**changes)
