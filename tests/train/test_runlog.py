"""What a training says of itself, and how long it expects to take; the clock is the tests' own."""

import pytest
from runs import MODEL, TRAIN

from spikegpt.train import runlog as module
from spikegpt.train import trainer as training
from spikegpt.train.runlog import RunLog


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def said(log: RunLog, step: int, capsys) -> str:
    log.step_done(step)
    log.progress(step, 1.0, 1.0, 1000, None)
    return capsys.readouterr().out


def test_the_time_left_comes_with_the_third_step_and_knows_nothing_of_the_first(tmp_path, clock, capsys):
    log = RunLog(tmp_path, 10, 110, {})
    clock[0] += 50
    assert "left" not in said(log, 11, capsys)
    clock[0] += 2
    assert "left" not in said(log, 12, capsys)
    clock[0] += 2
    # 97 steps of 2 s
    assert said(log, 13, capsys).endswith("left 3:14\n")


def test_a_training_begins_with_text_model_device_threads_and_folder(tmp_path, cache, capsys):
    training.train(MODEL, TRAIN, tmp_path / "run", cache=cache)
    first = capsys.readouterr().out.splitlines()[:4]
    assert [line.split()[0] for line in first] == ["text", "model", "device", "run"]
    assert "python-docs" in first[0] and " bytes" in first[0]
    assert " parameters in 2 layers of 16" in first[1]
    assert first[2].endswith("cpu, 1 thread, products in float32")
    assert str(tmp_path / "run") in first[3] and "12 steps of 64 tokens, 0 of them done" in first[3]


def test_a_quiet_training_says_nothing(make_run, capsys):
    make_run()
    assert capsys.readouterr().out == ""
