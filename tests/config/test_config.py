import dataclasses
import json

import numpy as np
import pytest

from spikegpt.config import (
    PRESETS,
    ClassifyConfig,
    ModelConfig,
    NeuronConfig,
    SamplingConfig,
    ServeConfig,
    TrainConfig,
    model_preset,
    train_preset,
)
from spikegpt.config.effects import doubts, idle_in_sampling, idle_in_training


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
    assert ModelConfig(spiking="input").neuron.alphabet == (-8, 8)
    assert ModelConfig(spiking="input").hidden_neuron.alphabet == (0, 16)
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
        (ModelConfig, {"n_layer": 0}, "n_layer must be a whole number from 1 to 1,024, got 0"),
        (ModelConfig, {"n_embd": 2.5}, "n_embd must be a whole number"),
        (ModelConfig, {"spiking": "always"}, "spiking must be one of none, output, input, got 'always'"),
        (ModelConfig, {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        (NeuronConfig, {"membrane_decay": 1.0}, "membrane_decay must be at least 0 and below 1, got 1.0"),
        (NeuronConfig, {"membrane_decay": 0.0, "learnable_decay": True}, "membrane_decay must be above 0"),
        (NeuronConfig, {"reset": "subtract", "reset_potential": -1.0}, "reset 'subtract' rests at 0"),
        (NeuronConfig, {"reset": "none", "reset_potential": -1.0}, "reset 'none' rests at 0"),
        (NeuronConfig, {"threshold": 0.0}, "must exceed reset_potential"),
        (NeuronConfig, {"surrogate": "triangle"}, "surrogate must be one of atan"),
        (TrainConfig, {"steps": 0}, "steps must be a whole number from 1 to 1,000,000,000, got 0"),
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


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainConfig, {"steps": 1.5}, "steps must be a whole number, got 1.5"),
        (TrainConfig, {"steps": True}, "steps must be a whole number, got True"),
        (TrainConfig, {"data": "a.txt"}, r"data must be a tuple or a list, got 'a.txt'; .* data=\('a.txt',\)"),
        (TrainConfig, {"data": (1,)}, r"data\[0\] must be a str, got 1"),
        (TrainConfig, {"data": ("",)}, "data is an empty string"),
        (TrainConfig, {"teacher": ""}, "teacher is an empty string"),
        (TrainConfig, {"self_teacher": 1.0, "teacher": "run"}, "two teachers"),
        (TrainConfig, {"self_teacher": 1.0, "teacher_features": 1.0}, "to nothing; leave it 0"),
        (TrainConfig, {"self_teacher": 1.0, "carry_state": True}, "leave out carry_state"),
        (TrainConfig, {"self_teacher": 1.0, "anneal": 0.5}, "leave anneal 0"),
        (TrainConfig, {"muon_momentum": 1.0}, r"muon_momentum must lie in \[0, 1\)"),
        (TrainConfig, {"betas": (0.9,)}, "betas must hold 2 values"),
        (TrainConfig, {"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\)"),
        (TrainConfig, {"adam_eps": float("inf")}, "adam_eps must be a finite number"),
        (TrainConfig, {"grad_clip": float("nan")}, "grad_clip must be a finite number"),
        (TrainConfig, {"firing_rate_weight": 1e300}, "firing_rate_weight must be a finite number, as float32 holds it"),
        (TrainConfig, {"lr": "1e-3"}, "lr must be a number, got '1e-3'"),
        (TrainConfig, {"lr": 10**400}, "lr must be a finite number"),
        (TrainConfig, {"carry_state": "yes"}, "carry_state must be True or False, got 'yes'"),
        (TrainConfig, {"threads": -1}, "threads must be a whole number from 0 to 1,024, got -1"),
        (TrainConfig, {"grad_accumulation": 10**21}, "grad_accumulation must be a whole number from 1 to 1,048,576"),
        (TrainConfig, {"bpe_vocab_size": 999_999_999_999}, "bpe_vocab_size must be a whole number from 257"),
        (TrainConfig, {"seed": 2**64}, "seed must .* 64 bits"),
        (TrainConfig, {"seed": 10**5000}, "seed must .* a number of about 5000 digits"),
        (SamplingConfig, {"stop": "abc"}, r"stop must be a tuple or a list, got 'abc'; .* stop=\('abc',\)"),
        (SamplingConfig, {"temperature": float("inf")}, "temperature must be a finite number"),
        (SamplingConfig, {"repetition_penalty": 0}, "repetition_penalty must be a number from 0.001"),
        (SamplingConfig, {"seed": -(2**63) - 1}, "seed must .* 64 bits"),
        (SamplingConfig, {"max_tokens": None}, "max_tokens must be a whole number, got None"),
        (ServeConfig, {"texts": 0}, "texts must be a whole number from 1 to 1,024, got 0"),
        (ServeConfig, {"client_s": 0}, "client_s must be a number from 0.1"),
        (ClassifyConfig, {"lr": float("inf")}, "lr must be a finite number"),
        (ClassifyConfig, {"seeds": (0, 2**64)}, r"seeds must .* 64 bits"),
        (ClassifyConfig, {"seeds": (1, 1)}, "seeds names one twice"),
        (NeuronConfig, {"threshold": float("inf")}, "threshold must be a finite number"),
        (NeuronConfig, {"slope": float("nan")}, "slope must be a finite number"),
        (ModelConfig, {"n_layer": 10**9}, "n_layer must be a whole number from 1 to 1,024"),
        (ModelConfig, {"n_embd": 10**9}, "n_embd must be a whole number from 1 to 65,536"),
        (ModelConfig, {"neuron": {"levels": 2}}, "neuron must be a NeuronConfig"),
        (ModelConfig, {"mixer": 7}, "mixer must be a str, got 7"),
    ],
)
def test_odd_value_is_refused_with_its_range(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "wants a dictionary"),
        ({"neuron": 3}, "NeuronConfig wants a dictionary"),
        ({"n_layer": None}, "n_layer must"),
    ],
    ids=str,
)
def test_odd_dictionary_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)


def test_numbers_of_numpy_and_paths_become_pythons_own(tmp_path):
    config = TrainConfig(steps=np.int64(7), lr=np.float32(0.5), data=[tmp_path / "a.txt"], carry_state=np.True_)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.steps == 7 and config.carry_state is True


def test_the_largest_seed_is_taken():
    assert TrainConfig(seed=2**64 - 1).seed == SamplingConfig(seed=2**64 - 1).seed == 2**64 - 1


def test_what_changes_nothing_is_known_with_its_reason():
    ours = idle_in_training(ModelConfig(), TrainConfig())
    assert {"vocab_size", "threshold", "reset", "binary_embedding", "teacher_weight", "bpe_vocab_size"} <= ours.keys()
    assert "no potential is kept" in ours["reset"] and "hidden_levels" not in ours and "synop_weight" not in ours
    published = idle_in_training(ModelConfig(spiking="output"), TrainConfig(tokenizer="bpe"))
    assert not {"threshold", "reset", "bpe_vocab_size"} & published.keys()
    assert {"synop_budget", "hidden_levels"} <= published.keys()
    dense = idle_in_training(ModelConfig(spiking="none"), TrainConfig())
    assert {"threshold", "levels", "anneal", "firing_rate_target"} <= dense.keys()
    assert idle_in_sampling(SamplingConfig(temperature=0)).keys() == {"top_k", "top_p", "seed"}
    assert not idle_in_sampling(SamplingConfig())


def test_a_warm_up_beyond_the_steps_is_doubted():
    assert not doubts(TrainConfig())
    (doubt,) = doubts(TrainConfig(steps=20, warmup_steps=50, lr=1e-3))
    assert "warmup_steps 50 are not over within the 20 steps" in doubt and "0.0004 instead of 0.001" in doubt


def test_a_preset_teaches_the_spike_driven_block_by_itself_and_the_published_sizes_as_published():
    dense, spiking = train_preset("small"), train_preset("small", "input")
    assert (dense.self_teacher, dense.commitment, spiking.self_teacher, spiking.commitment) == (0, 0, 1, 1)
    # all else is the twin's too
    assert dataclasses.replace(spiking, self_teacher=0.0, commitment=0.0) == dense
    assert train_preset("tiny", "output") == train_preset("tiny")
    published = train_preset("spikegpt-46m", "input")
    assert (published.optimizer, published.schedule, published.self_teacher) == ("adamw", "cosine", 0)
    assert train_preset("tiny", "input", self_teacher=0.5).self_teacher == 0.5
