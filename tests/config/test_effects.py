"""For every setting: which others does it need to have an effect?"""

import dataclasses

import pytest

from spikegpt.config import INPUT_NEURON, ClassifyConfig, ModelConfig, NeuronConfig, SamplingConfig, TrainConfig
from spikegpt.config.effects import doubts, idle_in_blocks, idle_in_sampling, idle_in_training


def idle(model=None, train=None, **options) -> dict[str, str]:
    return idle_in_training(ModelConfig(**(model or {})), TrainConfig(**(train or {})), **options)


@pytest.mark.parametrize(
    ("train", "without_effect"),
    [
        ({"teacher": "run", "teacher_weight": 0}, {"teacher"}),
        ({"firing_rate_target": 0.1, "firing_rate_weight": 0}, {"firing_rate_target"}),
        ({"synop_weight": 0}, {"synop_budget", "synop_warmup"}),
        ({"synop_budget": 0}, {"synop_weight", "synop_warmup"}),
        ({"lr": 0, "lr_final": 0}, {"warmup_steps", "weight_decay", "lr_scales", "grad_clip"}),
        ({"steps": 10, "warmup_steps": 9}, {"lr_final"}),
        ({"save_every": 500, "eval_every": 250}, {"save_every"}),
    ],
)
def test_a_setting_that_another_turns_off(train, without_effect):
    assert without_effect <= idle(train=train).keys()
    assert not without_effect & idle(train={"save_every": 300}).keys()


def test_a_model_that_teaches_itself():
    assert not {"self_teacher", "teacher_weight", "teacher_loss"} & idle(train={"self_teacher": 1.0}).keys()
    assert "self_teacher" in idle({"spiking": "none"}, {"self_teacher": 1.0})


@pytest.mark.parametrize(
    "model",
    [{"spiking": "none"}, {"spiking": "output"}, {"neuron": dataclasses.replace(INPUT_NEURON, membrane_decay=0.5)}],
)
def test_only_memoryless_neurons_of_whole_spikes_commit(model):
    assert "commitment" in idle(model, {"commitment": 1.0})
    assert "commitment" not in idle(train={"commitment": 1.0})


def test_what_is_never_reset_keeps_no_gradient_from_its_reset():
    def neuron(reset: str) -> dict:
        return {"neuron": dataclasses.replace(INPUT_NEURON, membrane_decay=0.5, reset=reset)}

    assert "detach_reset" in idle(neuron("none")) and "detach_reset" not in idle(neuron("subtract"))


def test_a_scale_beyond_the_layers():
    shape = {"spiking": "none", "rescale_every": 6}
    assert "rescale_every" in idle_in_blocks(ModelConfig(n_layer=1, **shape))
    assert "rescale_every" not in idle_in_blocks(ModelConfig(n_layer=12, **shape))


def test_what_the_weights_bring_along():
    learned = {"spiking": "output", "neuron": NeuronConfig(learnable_decay=True, learnable_threshold=True)}
    assert not {"threshold", "membrane_decay"} & idle(learned, begins_with="none").keys()
    assert {"threshold", "membrane_decay"} <= idle(learned, begins_with="output").keys()


def test_a_column_where_nothing_has_rows():
    assert "text_column" in idle(has_rows=False) and "text_column" not in idle()


def test_top_k_1_leaves_nothing_to_chance():
    assert idle_in_sampling(SamplingConfig(top_k=1)).keys() == {"temperature", "top_p", "seed"}


@pytest.mark.parametrize(
    ("config", "doubt"),
    [
        (TrainConfig(lr=0, lr_final=0), "lr is 0: nothing is learned"),
        (TrainConfig(lr=1e-45, lr_final=0), "lr is 1e-45: nothing is learned"),
        (ClassifyConfig(lr=0), "lr is 0: nothing is learned"),
        (TrainConfig(grad_clip=1e-45), "grad_clip 1e-45 is below adam_eps 1e-08"),
    ],
    ids=["lr 0", "lr tiny", "classify", "clip"],
)
def test_a_training_that_learns_nothing_is_doubted(config, doubt):
    (found,) = doubts(config)
    assert doubt in found
