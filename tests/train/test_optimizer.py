"""RWKV's parameter groups, and the names that a user freezes or scales."""

import dataclasses

import pytest
from runs import MODEL, TRAIN

from spikegpt.common.errors import SpikegptError
from spikegpt.config import TrainConfig
from spikegpt.model.network import SpikeGPT
from spikegpt.train.optimizer import make_optimizer


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
