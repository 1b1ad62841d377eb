"""RWKV's parameter groups, and the names that a user freezes or scales."""

import dataclasses

import pytest
import torch
from runs import MODEL, TRAIN, weights_of

from spikegpt.checkpoint.run import configs_of
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.model.network import SpikeGPT
from spikegpt.train.optimizer import make_optimizer, set_learning_rate
from spikegpt.train.trainer import resume


def test_time_parameters_learn_faster_and_only_matrices_decay():
    model = SpikeGPT(MODEL)
    optimizer = make_optimizer(model, dataclasses.replace(TRAIN, weight_decay=0.1))
    found = {
        id(p): (group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    att = model.blocks[0].att
    wanted = {
        att.time_decay: (2.0, 0.0),
        att.time_first: (3.0, 0.0),
        att.time_mix_k: (1.0, 0.0),
        att.key.weight: (1.0, 0.1),
    }
    assert {p: found[id(p)] for p in wanted} == wanted


def test_learning_rate_scales_multiply_rwkvs_groups_and_the_last_that_fits_counts():
    config = dataclasses.replace(TRAIN, lr_scales=("*.att.*=0.5", "*.time_decay=0.1", "head.*=0"))
    model = SpikeGPT(MODEL)
    optimizer = make_optimizer(model, config)
    scale_of = {id(member): group["lr_scale"] for group in optimizer.param_groups for member in group["params"]}
    named = dict(model.named_parameters())
    assert scale_of[id(named["blocks.0.att.key.weight"])] == 0.5
    assert scale_of[id(named["blocks.1.att.time_decay"])] == pytest.approx(0.2)
    assert scale_of[id(named["blocks.1.att.time_first"])] == 1.5
    assert (scale_of[id(named["head.weight"])], scale_of[id(named["emb.weight"])]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"freeze": ("embedding.*",)},
            r"--freeze: no parameter is named like 'embedding\.\*'; there are emb\.weight, ",
        ),
        ({"freeze": ("*",)}, "leaves nothing to train"),
        ({"lr_scales": ("bocks.*=2",)}, r"--lr-scales: no parameter is named like 'bocks\.\*'"),
    ],
)
def test_patterns_that_name_nothing_or_all_are_refused(changes, message):
    with pytest.raises(SpikegptError, match=message):
        make_optimizer(SpikeGPT(MODEL), dataclasses.replace(TRAIN, **changes))


@pytest.mark.parametrize("entry", ["head.*", "head.*=fast", "=2", "head.*=-1", "head.*=inf"])
def test_a_learning_rate_scale_is_a_pattern_and_a_factor(entry):
    with pytest.raises(ValueError, match="PATTERN=FACTOR"):
        TrainConfig(lr_scales=(entry,))


MUON = dataclasses.replace(TRAIN, optimizer="muon", lr=4e-3, muon_lr=0.02, muon_momentum=0.8, weight_decay=0.1)


def test_muon_takes_the_blocks_matrices_and_adamw_all_else():
    model = SpikeGPT(MODEL)
    muon, adamw = make_optimizer(model, MUON).parts
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[parameter] for group in muon.param_groups for parameter in group["params"]}
    matrices = ["att.key", "att.value", "att.receptance", "att.output", "ffn.key", "ffn.value", "ffn.receptance"]
    assert found == {f"blocks.{layer}.{name}.weight" for layer in range(MODEL.n_layer) for name in matrices}
    rest = {names[parameter] for group in adamw.param_groups for parameter in group["params"]}
    assert rest == set(names.values()) - found


def test_both_rates_follow_one_schedule():
    optimizer = make_optimizer(SpikeGPT(MODEL), dataclasses.replace(MUON, lr_scales=("blocks.0.*=0.5",)))
    # a quarter of the highest
    set_learning_rate(optimizer, MUON.lr / 4)
    muon, adamw = optimizer.parts
    assert sorted(group["lr"] for group in muon.param_groups) == pytest.approx([0.02 / 8, 0.02 / 4])
    assert max(group["lr"] for group in adamw.param_groups) == pytest.approx(3 * 4e-3 / 4)


def test_a_step_of_muon_is_the_orthogonal_factor_of_its_momentum():
    torch.manual_seed(0)
    model = SpikeGPT(MODEL.twin())
    config = dataclasses.replace(MUON, weight_decay=0.0)
    optimizer, matrix = make_optimizer(model, config), model.blocks[0].ffn.key.weight
    before = matrix.detach().clone()
    matrix.grad = torch.randn_like(matrix)
    set_learning_rate(optimizer, config.lr)
    optimizer.step()
    assert torch.allclose(optimizer.state[matrix]["momentum_buffer"], (1 - config.muon_momentum) * matrix.grad)
    left, _, right = torch.linalg.svd(matrix.grad, full_matrices=False)
    # four times as many rows as columns: twice the rate. The iteration stops when singular values lie around 1
    moved = (before - matrix.detach()) / (0.02 * 2)
    values = torch.linalg.svdvals(moved)
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0) > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("grad_accumulation", [1, 2])
def test_a_run_of_muon_resumes_byte_for_byte(make_run, cache, grad_accumulation):
    changes = {"optimizer": "muon", "schedule": "wsd", "grad_accumulation": grad_accumulation}
    whole, broken = (make_run(name, **changes) for name in ("whole", "broken"))
    for file in (broken / "checkpoints" / "step-00000012").iterdir():
        file.unlink()
    resume(broken, cache=cache, quiet=True)
    assert weights_of(broken) == weights_of(whole)


def test_a_run_that_began_before_there_was_a_choice_goes_on_with_adamw(tmp_path):
    stored = {key: value for key, value in MUON.to_dict().items() if key not in ("optimizer", "schedule")}
    _, config = configs_of(tmp_path, {"model": ModelConfig().to_dict(), "train": stored})
    assert (config.optimizer, config.schedule) == ("adamw", "cosine")
