"""A run beside what others do at the same time, or did before: earlier runs, trainings that go on, closed terminals."""

import dataclasses
import json
import os
import shutil
import signal
import sys

import processes
import pytest
import torch
from command_line import spikegpt
from runs import MODEL, TRAIN, break_off, weights_of

from spikegpt.checkpoint import run as ckpt
from spikegpt.checkpoint import weights
from spikegpt.checkpoint.files import write_manifest
from spikegpt.common.errors import SpikegptError
from spikegpt.common.files import locked
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.evaluate.runs import evaluate_run
from spikegpt.model.network import SpikeGPT
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
    # under nohup these tests begin with an ignored one; by default it would end them
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.number == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
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

    def like_a_shell() -> None:
        # closing this terminal hangs up; under nohup these tests begin with an ignored hangup
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    own = {"start_new_session": True, "preexec_fn": like_a_shell}
    running = processes.start([sys.executable, *words], stdin=inside, stdout=inside, stderr=inside, **own)
    os.close(inside)
    said = b""
    while said.count(b"tokens/s") < 2:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert running.wait(timeout=processes.HANGS_S) == 128 + signal.SIGHUP
    assert ckpt.latest_checkpoint(tmp_path / "run") is not None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is of Linux")
def test_a_run_whose_log_cannot_be_written_names_it_and_goes_on_later(tmp_path, cache, monkeypatch):
    run = tmp_path / "run"
    break_off(monkeypatch, run, cache, 8)
    kept = (run / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        open_file = type(run).open

        def full(self, mode="r", *arguments, **options):
            path = type(run)("/dev/full") if self == run / "metrics.jsonl" and "a" in mode else self
            return open_file(path, mode, *arguments, **options)

        patch.setattr(type(run), "open", full)
        done = spikegpt("train", "--resume", run, "--cache", cache, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"error: {run / 'metrics.jsonl'}: No space left on device; make room" in done.stderr
    assert (run / "metrics.jsonl").read_bytes() == kept
    assert resume(run, cache=cache, quiet=True).step == 12


def test_a_model_with_more_rows_than_tokens_trains_samples_and_resumes(tmp_path, cache, monkeypatch):
    """The rows behind the 256 bytes are no tokens, and would be drawn first."""
    model = SpikeGPT(dataclasses.replace(MODEL, vocab_size=300))
    with torch.no_grad():
        model.head.weight[256:] = 50 * model.head.weight.abs().max()
    (tmp_path / "model").mkdir()
    ckpt.save_model(tmp_path / "model", model, ByteTokenizer())
    options = {"sample_every": 1, "save_every": 1, "tokenizer": "byte"}
    break_off(monkeypatch, tmp_path / "run", cache, 2, model.config, start=tmp_path / "model", **options)
    assert resume(tmp_path / "run", cache=cache, quiet=True).step == 12
    assert (tmp_path / "run" / "samples.txt").read_text().count("--- step ") == 12


def test_a_folder_of_classifiers_has_one_writer(trained, tmp_path, cache):
    rows = tmp_path / "rows.tsv"
    rows.write_text("text\tlabel\n" + "".join(f"word {n}\t{n % 2}\n" for n in range(20)))
    out = tmp_path / "out"
    with locked(out / trained.name):
        done = spikegpt("finetune-classify", trained, "--train", rows, "--test", rows, "--out", out, check=False)
    assert done.returncode == 1 and f"{out / trained.name} is in use by process {os.getpid()} on " in done.stderr
