"""What callbacks are told, and how one ends a training."""

import dataclasses

import pytest
from runs import MODEL, TRAIN, weights_of

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.common.errors import SpikegptError
from spikegpt.train import Callback, EarlyStopping, EvaluationFacts, StepFacts, resume, train
from spikegpt.train.journal import read_metrics


class Heard(Callback):
    """Keeps what it is told, and ends the training after a step or an evaluation if it is asked to."""

    def __init__(self, after_step: int = 0, after_evaluation: int = 0):
        self.steps: list[StepFacts] = []
        self.evaluations: list[EvaluationFacts] = []
        self.ends = after_step, after_evaluation

    def on_step(self, facts):
        self.steps.append(facts)
        return facts.step == self.ends[0]

    def on_evaluation(self, facts):
        self.evaluations.append(facts)
        return facts.step == self.ends[1]


def trained(run, cache, *callbacks, **changes):
    return train(MODEL, dataclasses.replace(TRAIN, **changes), run, cache=cache, quiet=True, callbacks=callbacks)


def test_every_step_and_every_evaluation_is_told_as_it_is_written_down(tmp_path, cache):
    heard = Heard()
    result = trained(tmp_path / "run", cache, heard, log_every=1)
    lines = {(line["kind"], line["step"]): line for line in read_metrics(tmp_path / "run")}
    assert [facts.step for facts in heard.steps] == list(range(1, 13))
    for facts in heard.steps:
        line = lines["train", facts.step]
        told = facts.loss, facts.losses, facts.bits_per_byte, facts.learning_rate, facts.gradient_norm, facts.tokens
        names = "loss", "losses", "bits_per_byte", "learning_rate", "gradient_norm", "tokens"
        assert told == tuple(line[name] for name in names)
    assert [facts.step for facts in heard.evaluations] == [6, 12]
    assert heard.evaluations[-1].valid == result.valid
    # the budget of spikes has shrunk after half of the steps, and from there evaluations count
    assert heard.evaluations[-1].best_step == 12


def test_a_training_that_is_told_of_learns_the_same(trained_weights, tmp_path, cache):
    trained(tmp_path / "run", cache, Heard())
    assert weights_of(tmp_path / "run") == trained_weights


@pytest.fixture
def trained_weights(tmp_path, cache):
    trained(tmp_path / "untold", cache)
    return weights_of(tmp_path / "untold")


@pytest.mark.parametrize(("ends", "step"), [({"after_step": 5}, 5), ({"after_evaluation": 6}, 6)], ids=str)
def test_a_callback_ends_the_training_which_can_go_on(ends, step, trained_weights, tmp_path, cache):
    result = trained(tmp_path / "run", cache, Heard(**ends))
    assert (result.step, result.interrupted, result.signal) == (step, True, None)
    assert latest_checkpoint(tmp_path / "run").name == f"step-{step:08d}"
    heard = Heard()
    assert resume(tmp_path / "run", cache=cache, quiet=True, callbacks=[heard]).step == 12
    assert heard.steps[0].step == step + 1
    assert weights_of(tmp_path / "run") == trained_weights


def test_all_callbacks_hear_a_step_that_one_ends(tmp_path, cache):
    first, second = Heard(after_step=2), Heard()
    trained(tmp_path / "run", cache, first, second)
    assert [facts.step for facts in second.steps] == [1, 2]


def test_what_was_begun_with_may_end_the_training_before_it_begins(make_run, tmp_path, cache):
    start = make_run("start", steps=1)
    heard = Heard(after_step=0, after_evaluation=0)
    result = train(MODEL, TRAIN, tmp_path / "tuned", start=start, cache=cache, quiet=True, callbacks=[heard])
    assert (result.step, [facts.step for facts in heard.evaluations], heard.steps) == (0, [0], [])


@pytest.mark.parametrize(("best", "ends"), [(None, False), (200, False), (100, True), (50, True)])
def test_early_stopping_waits_for_so_many_steps_since_the_best(best, ends, trained_facts):
    facts = dataclasses.replace(trained_facts, step=300, best_step=best)
    assert EarlyStopping(steps=200).on_evaluation(facts) is ends


@pytest.fixture
def trained_facts(tmp_path, cache):
    heard = Heard()
    trained(tmp_path / "run", cache, heard, steps=1, sample_every=0)
    return heard.evaluations[0]


def test_what_is_no_callback_is_refused_before_anything_is_written(tmp_path, cache):
    for callbacks, said in (([print], "got <built-in function print>"), ([Heard], "got the class Heard")):
        with pytest.raises(SpikegptError, match=said):
            trained(tmp_path / "run", cache, *callbacks)
    with pytest.raises(SpikegptError, match="callbacks must be a list of Callback objects"):
        train(MODEL, TRAIN, tmp_path / "run", callbacks=Heard())
    assert not (tmp_path / "run").exists()


def test_an_exception_of_a_callback_reaches_the_caller_and_leaves_the_run_to_go_on(tmp_path, cache):
    class Broken(Callback):
        def on_step(self, facts):
            if facts.step == 5:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "run", cache, Broken())
    assert resume(tmp_path / "run", cache=cache, quiet=True).step == 12
