"""Training resumes bit for bit, stops in words, and gives the same in one process and in two."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from runs import MODEL, TRAIN, break_off, weights_of
from safetensors.torch import load_file

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.common.errors import SpikegptError
from spikegpt.config import NeuronConfig
from spikegpt.train import trainer as training
from spikegpt.train.journal import read_metrics
from spikegpt.train.language_modelling import LanguageModelling


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4, 7, 11])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"carry_state": True},
        {"grad_accumulation": 2},
        {"firing_rate_target": 0.2},
        {"self_teacher": 1.0},
        {"commitment": 1.0},
    ],
    ids=str,
)
def test_broken_run_ends_with_the_weights_of_the_unbroken_one(make_run, monkeypatch, tmp_path, cache, after, changes):
    unbroken = make_run(**changes)
    break_off(monkeypatch, tmp_path / "broken", cache, after, **changes)
    torch.manual_seed(99)
    training.resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(tmp_path / "broken") == weights_of(unbroken)


def test_resumed_metrics_have_every_step_once(make_run, monkeypatch, tmp_path, cache):
    unbroken = make_run()
    break_off(monkeypatch, tmp_path / "broken", cache, 7)
    training.resume(tmp_path / "broken", cache=cache, quiet=True)
    facts = [
        [(line["step"], line["kind"], line["bits_per_byte"]) for line in read_metrics(run)]
        for run in (unbroken, tmp_path / "broken")
    ]
    assert facts[0] == facts[1]


@pytest.mark.slow
def test_training_lowers_the_loss(make_run):
    lines = [line["loss"] for line in read_metrics(make_run(steps=60, lr=1e-2)) if line["kind"] == "train"]
    assert lines[-1] < lines[0] - 1.5


def test_run_folder_holds_all_that_explains_it(trained):
    values = json.loads((trained / "config.json").read_text())
    assert values["train"]["steps"] == 12
    assert values["model"]["vocab_size"] == 256
    assert "python" in json.dumps(values["corpus"]["metadata"]).lower()
    assert {path.name for path in trained.iterdir()} == {
        "config.json",
        "run.yaml",
        "tokenizer.json",
        "metrics.jsonl",
        "samples.txt",
        "checkpoints",
    }


def test_existing_run_is_not_overwritten(trained, cache):
    with pytest.raises(SpikegptError, match="holds a run already; continue it with: spikegpt train --resume"):
        training.train(MODEL, TRAIN, trained, cache=cache)


def test_arguments_in_anothers_place_are_refused(tmp_path, cache):
    with pytest.raises(SpikegptError, match="wants a ModelConfig and then a TrainConfig, got TrainConfig"):
        training.train(TRAIN, MODEL, tmp_path / "run", cache=cache)
    for run in (None, 7, b"run"):
        with pytest.raises(SpikegptError, match=r"run is .*; give a path"):
            training.train(MODEL, TRAIN, run, cache=cache)
        with pytest.raises(SpikegptError, match=r"run is .*; give a path"):
            training.resume(run)
    assert not list(tmp_path.iterdir())


def test_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(SpikegptError, match="does not exist"):
        training.resume(tmp_path)


def test_ctx_len_longer_than_the_text_names_both(tmp_path, cache):
    text = tmp_path / "short.txt"
    text.write_text("to be or not to be " * 20)
    with pytest.raises(SpikegptError, match="512"):
        training.train(
            dataclasses.replace(MODEL, ctx_len=512),
            dataclasses.replace(TRAIN, data=(str(text),)),
            tmp_path / "run",
            cache=cache,
        )


def test_infinite_loss_stops_with_step_rate_and_checkpoint(make_run, tmp_path):
    with pytest.raises(
        SpikegptError, match=r"step \d+: loss is .*, learning rate [\d.]+e\+\d+; (last good checkpoint|no checkpoint)"
    ):
        make_run(lr=1e30, warmup_steps=0, grad_clip=0.0)


def test_a_full_gpu_is_said_to_be(make_run, monkeypatch):
    def full(self, step):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LanguageModelling, "forward", full)
    with pytest.raises(
        SpikegptError,
        match=r"step 1: the GPU's memory is full at batch_size 4 x ctx_len 16: lower --batch-size .* 2\.00 GiB",
    ):
        make_run()


def test_unwritable_run_folder_is_an_error(cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpikegptError, match="cannot write the folder"):
        training.train(MODEL, TRAIN, tmp_path / "file" / "run", cache=cache)


def test_dead_and_saturated_layers_are_named(make_run, capsys):
    make_run(model=dataclasses.replace(MODEL, neuron=NeuronConfig(threshold=1e6)))
    assert "blocks.1.ffn.value_neuron is dead (mean firing 0.00%)" in capsys.readouterr().err


def command(out: Path, cache: Path, *more: str) -> list[str]:
    sizes = [
        "--n-layer",
        "1",
        "--n-embd",
        "16",
        "--ctx-len",
        "16",
        "--threads",
        "1",
        "--sample-every",
        "0",
        "--eval-tokens",
        "256",
    ]
    return ["-m", "spikegpt", "train", "--out", str(out), "--cache", str(cache), *sizes, *more]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_names_the_command_that_resumes(tmp_path, cache, number):
    arguments = [
        sys.executable,
        *command(tmp_path / "run", cache, "--steps", "100000", "--log-every", "1", "--eval-every", "0"),
    ]
    process = processes.start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # the first progress line: the training has begun
    first = process.stdout.readline()
    os.kill(process.pid, number)
    # said at once, while the step goes on
    assert "stopping after this step" in process.stderr.readline() + process.stderr.readline()
    output = first + process.communicate(timeout=processes.HANGS_S)[0]
    assert process.returncode == 128 + number
    assert f"continue with: spikegpt train --resume {tmp_path / 'run'}" in output
    assert latest_checkpoint(tmp_path / "run") is not None


def test_nobody_leaves_while_the_main_process_evaluates(make_run, monkeypatch, cache):
    """A complete run is evaluated by the main process alone; the others wait before connections are taken down."""
    from accelerate import Accelerator

    run, events, measure = make_run(), [], LanguageModelling.evaluate
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: events.append("wait"))
    monkeypatch.setattr(Accelerator, "end_training", lambda self: events.append("end"))
    monkeypatch.setattr(LanguageModelling, "evaluate", lambda *given: (events.append("evaluate"), measure(*given))[1])
    training.resume(run, cache=cache, quiet=True)
    assert events[-3:] == ["evaluate", "wait", "end"]


@pytest.mark.slow
@pytest.mark.parametrize("teaching", [["--self-teacher", "0"], []], ids=["untaught", "its own teacher"])
def test_two_processes_train_like_one_with_the_doubled_batch(tmp_path, cache, teaching):
    common = ["--steps", "6", "--dropout", "0", "--log-every", "1", "--warmup-steps", "0"]
    # Muon multiplies in bfloat16, which makes much of what is little; the commitment is a share of each batch's energy
    common += ["--precision", "no", "--optimizer", "adamw", "--commitment", "0", *teaching]
    one = [sys.executable, *command(tmp_path / "one", cache, *common, "--batch-size", "8")]
    # accelerate's word for several processes of one machine; without a GPU they talk by gloo
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--num_cpu_threads_per_process",
        "1",
        "--main_process_port",
        "0",
    ]
    two = [*launch, *command(tmp_path / "two", cache, *common, "--batch-size", "4")]
    for arguments in (one, two):
        done = processes.run(arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    lines = [[line for line in read_metrics(tmp_path / name) if line["kind"] == "train"] for name in ("one", "two")]
    losses = [[loss for line in run for loss in (line["loss"], *line["losses"].values())] for run in lines]
    assert len(losses[0]) == 6 * (3 if teaching else 5)
    # float32 sums in another order; a spike that flips by rounding moves a loss by far more than this
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    ours, theirs = (load_file(latest_checkpoint(tmp_path / name) / "model.safetensors") for name in ("one", "two"))
    assert max((ours[key] - theirs[key]).abs().max() for key in ours) < 1e-3
