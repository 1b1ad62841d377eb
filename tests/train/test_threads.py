"""The trainer works with as many threads as are fastest, unless a number is asked for; and tells of every change."""

import dataclasses

import pytest
import torch
from runs import MODEL, TRAIN, weights_of

from spikegpt.train import trainer as training
from spikegpt.train.journal import read_metrics


@pytest.fixture
def chosen(monkeypatch):
    """Numbers of threads that will be found to be the fastest, one after the other; the work is done for each."""
    numbers: list[int] = []

    def fastest(work, most):
        work()
        torch.set_num_threads(numbers.pop(0))
        return torch.get_num_threads()

    monkeypatch.setattr(training, "fastest_threads", fastest)
    torch.set_num_threads(2)
    return numbers


def changing_at(monkeypatch, *steps: int) -> None:
    """Let the pace change at these steps."""
    done = iter(range(1, 1000))
    monkeypatch.setattr(training.Pace, "changes", lambda self, seconds: next(done) in steps)


@pytest.mark.parametrize("changes", [{}, {"carry_state": True}], ids=str)
def test_measuring_changes_nothing_that_is_learned(make_run, monkeypatch, chosen, changes):
    changing_at(monkeypatch, 3, 7)
    chosen += [1, 1, 1]
    model = dataclasses.replace(MODEL, dropout=0.1)
    run = make_run("chosen", model, threads=0, **changes)
    assert chosen == []
    assert weights_of(run) == weights_of(make_run("asked", model, threads=1, **changes))


def test_the_metrics_say_where_a_number_was_chosen(make_run, monkeypatch, chosen):
    changing_at(monkeypatch, 4, 8)
    chosen += [2, 1, 1]
    lines = read_metrics(make_run(threads=0))
    assert [(line["step"], line["threads"]) for line in lines if line["kind"] == "threads"] == [(0, 2), (4, 1), (8, 1)]
    assert [line["threads"] for line in lines if line["kind"] == "train"] == [2, 2, 1, 1, 1]


def test_a_number_that_is_asked_for_stays(make_run, monkeypatch, chosen):
    changing_at(monkeypatch, 4)
    lines = read_metrics(make_run(threads=2))
    assert {line["threads"] for line in lines if line["kind"] == "train"} == {2}


def test_where_torch_has_one_thread_there_is_nothing_to_choose(make_run, chosen):
    torch.set_num_threads(1)
    make_run(threads=0)


def test_a_run_that_goes_on_with_another_number_says_so(make_run, monkeypatch, chosen, cache, capsys):
    chosen += [1, 1]
    changing_at(monkeypatch)
    run = make_run(threads=0)
    torch.set_num_threads(2)
    training.resume(run, cache=cache)
    assert "the run had 1 process(es) with 1 thread(s), now 1 process(es) with 2" in capsys.readouterr().out


def test_a_choice_is_said_in_one_line(tmp_path, monkeypatch, chosen, cache, capsys):
    chosen += [1]
    changing_at(monkeypatch)
    training.train(MODEL, dataclasses.replace(TRAIN, threads=0), tmp_path / "run", cache=cache)
    assert "threads 1 of 2 are fastest at present; --threads 1 pins them\n" in capsys.readouterr().out
