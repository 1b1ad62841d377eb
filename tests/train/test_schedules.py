"""What changes with the step, worked out by hand."""

import dataclasses

import pytest
from runs import TRAIN

from spikegpt.config import TrainConfig
from spikegpt.train.schedules import learning_rate, spike_share, synop_budget


def test_learning_rate_warms_up_and_ends_at_lr_final():
    config = dataclasses.replace(TRAIN, steps=10, warmup_steps=4, lr=1.0, lr_final=0.1)
    assert [learning_rate(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    # by hand: half way down the cosine
    assert learning_rate(7, config) == pytest.approx(0.55)
    assert learning_rate(10, config) == pytest.approx(0.1)


def test_a_stable_rate_falls_in_a_straight_line_at_the_end():
    config = dataclasses.replace(TRAIN, steps=10, warmup_steps=2, lr=1.0, lr_final=0.2, schedule="wsd", decay_share=0.4)
    found = [learning_rate(step, config) for step in range(11)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    whole = dataclasses.replace(config, warmup_steps=0, decay_share=1.0)
    assert [learning_rate(step, whole) for step in (0, 5, 10)] == pytest.approx([1.0, 0.6, 0.2])
    never = dataclasses.replace(config, decay_share=0.0)
    assert {learning_rate(step, never) for step in range(2, 10)} == {1.0}


def test_the_budget_shrinks_to_its_end_over_the_warmup():
    budget = TrainConfig(steps=100, synop_budget=0.2, synop_warmup=0.5)
    assert [synop_budget(step, budget) for step in (0, 25, 50, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert synop_budget(0, TrainConfig(synop_warmup=0.0, synop_budget=0.2)) == 0.2


def test_annealing_ends_when_it_should():
    config = dataclasses.replace(TRAIN, steps=100, anneal=0.5)
    assert [spike_share(step, config) for step in (0, 10, 50, 99)] == [0.0, 0.2, 1.0, 1.0]
    assert spike_share(0, TRAIN) == 1.0
