"""A run beside what others do at the same time, or did before: earlier runs, trainings that go on, closed terminals."""

import dataclasses
import json
import os
import shutil
import signal
import sys

import processes
import pytest
from command_line import spikegpt
from runs import MODEL, TRAIN, break_off, weights_of

from spikegpt.checkpoint import run as ckpt
from spikegpt.checkpoint import weights
from spikegpt.checkpoint.files import write_manifest
from spikegpt.common.errors import SpikegptError
from spikegpt.evaluate.runs import evaluate_run
from spikegpt.train import convert, resume, train
from spikegpt.train.journal import read_metrics
from spikegpt.train.stop_signals import StopSignals


@pytest.fixture
def live(trained, tmp_path):
    """A copy of a run, and how it goes on: its newest checkpoint, which is its best, gives way to a newer one."""
    run = shutil.copytree(trained, tmp_path / "live")

    def go_on() -> None:
        newest = ckpt.latest_checkpoint(run)
        after = newest.with_name(f"step-{ckpt.step_of(newest) + 1:08d}")
        newest.rename(after)
        state = json.loads((after / "training.json").read_text())
        state["best"]["step"] = ckpt.step_of(after)
        (after / "training.json").write_text(json.dumps(state))
        write_manifest(after)

    return run, go_on


def once(function, before):
    """`function`, before whose first call something happens."""
    waiting = [before]

    def called(*arguments, **options):
        if waiting:
            waiting.pop()()
        return function(*arguments, **options)

    return called


@pytest.mark.parametrize(("module", "name"), [(ckpt, "fault_of"), (weights, "TensorFile"), (weights, "load_weights")])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(live, module, name, monkeypatch, capsys):
    run, go_on = live
    monkeypatch.setattr(module, name, once(getattr(module, name), go_on))
    weights.load_model(run)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("module", "name"), [(convert, "load_weights"), (convert, "open_model")])
def test_a_training_from_a_run_that_goes_on(live, module, name, monkeypatch, tmp_path, cache, capsys):
    run, go_on = live
    monkeypatch.setattr(module, name, once(getattr(module, name), go_on))
    config = dataclasses.replace(TRAIN, steps=1, lr=0, lr_final=0)
    train(MODEL, config, tmp_path / "tuned", start=run, cache=cache, quiet=True)
    facts = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert facts["start_sha256"] == weights_of(run) and facts["started_from"] == str(run)
    assert "warning: step" not in capsys.readouterr().err


def test_a_checkpoint_that_is_only_damaged_is_said_to_be(live, capsys):
    run, _ = live
    (ckpt.latest_checkpoint(run) / "model.safetensors").unlink()
    weights.load_model(run)
    assert "is not whole (model.safetensors is missing); using the one before it" in capsys.readouterr().err


def test_a_run_goes_on_without_what_it_began_with(trained, tmp_path, cache, monkeypatch):
    start = shutil.copytree(trained, tmp_path / "start")
    break_off(monkeypatch, tmp_path / "run", cache, 8, start=start)
    shutil.rmtree(start)
    assert resume(tmp_path / "run", cache=cache, quiet=True).step == 12


def test_a_run_that_diverged_before_its_first_checkpoint_makes_room(make_run, tmp_path, capsys):
    with pytest.raises(SpikegptError, match="no checkpoint was written yet"):
        make_run(lr=1e30, warmup_steps=0, grad_clip=0.0, log_every=1)
    assert read_metrics(tmp_path / "run")
    run = make_run(steps=4)
    assert "ended before its first checkpoint; a new one takes its place" in capsys.readouterr().err
    assert [record["step"] for record in read_metrics(run)] == sorted(record["step"] for record in read_metrics(run))
    assert json.loads((run / "config.json").read_text())["train"]["lr"] == TRAIN.lr
    with pytest.raises(SpikegptError, match="holds a run already"):
        make_run()


def test_a_checkpoint_is_not_resumed_but_its_run(trained):
    with pytest.raises(SpikegptError, match=f"continue the run that it is of: spikegpt train --resume {trained}"):
        resume(ckpt.latest_checkpoint(trained))


@pytest.mark.parametrize("part", ["model.safetensors", None])
def test_a_folder_with_a_model_makes_no_room(trained, make_run, tmp_path, part):
    model = shutil.copytree(ckpt.find_model(trained), tmp_path / "run")
    if part is None:
        (model / "model.safetensors").unlink()
    before = (model / "config.json").read_bytes()
    with pytest.raises(SpikegptError, match="holds a model already; give another --out"):
        make_run()
    assert (model / "config.json").read_bytes() == before


def test_a_run_is_resumed_from_what_lies_there(make_run, tmp_path):
    """--from and an existing model of another shape: the flag is named."""
    run = make_run(steps=1)
    for flag, value in (("--n-embd", "64"), ("--n-layer", "4"), ("--spiking-head", None), ("--learnable-decay", None)):
        words = [flag] if value is None else [flag, value]
        done = spikegpt("train", "--from", run, *words, "--membrane-decay", "0.5", "--out", tmp_path / "x", check=False)
        assert done.returncode == 1 and f"which {flag} cannot change to" in done.stderr, done.stderr


def test_evaluation_of_a_run_that_goes_on(live, monkeypatch, cache):
    run, go_on = live
    monkeypatch.setattr(weights, "load_tokenizer", once(weights.load_tokenizer, go_on))
    assert evaluate_run(run, limit=64, cache=cache)["step"] == 12


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="of Unix")
def test_a_hangup_asks_to_stop_unless_it_is_ignored():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.number == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pseudo-terminals of Linux")
def test_a_training_whose_terminal_is_closed_keeps_a_checkpoint(tmp_path, cache):
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    sizes = ["--n-layer", "1", "--n-embd", "16", "--ctx-len", "16", "--eval-tokens", "64", "--threads", "1"]
    words = ["-m", "spikegpt", "train", "--out", tmp_path / "run", "--cache", cache, "--steps", "1000000", *sizes]
    terminal, inside = os.openpty()
    # as of a shell: closing this terminal hangs up
    own = {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}
    running = processes.start([sys.executable, *words], stdin=inside, stdout=inside, stderr=inside, **own)
    os.close(inside)
    said = b""
    while said.count(b"tokens/s") < 2:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert running.wait(timeout=processes.HANGS_S) == 128 + signal.SIGHUP
    assert ckpt.latest_checkpoint(tmp_path / "run") is not None
