"""Training resumes bit for bit, stops in words, and gives the same in one process and in two."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODEL, TRAIN
from safetensors.torch import load_file

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.common.files import sha256_of
from spikegpt.config import NeuronConfig, TrainConfig
from spikegpt.model.network import SpikeGPT
from spikegpt.train import trainer as training
from spikegpt.train.losses import distillation, synop_budget, synop_share, synop_weight
from spikegpt.train.optimizer import learning_rate, make_optimizer
from spikegpt.train.runlog import read_metrics


def weights_of(run: Path) -> str:
    return sha256_of(latest_checkpoint(run) / "model.safetensors")


class _Killed(Exception):
    """Stands for SIGKILL: nothing of ours runs after it."""


def break_off(
    monkeypatch, run: Path, cache: Path, after: int, model=MODEL, start: Path | None = None, **changes
) -> None:
    step = training._Trainer._train_step

    def dying(self, signals):
        if self.step == after:
            raise _Killed
        return step(self, signals)

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "_train_step", dying)
        with pytest.raises(_Killed):
            training.train(model, dataclasses.replace(TRAIN, **changes), run, start=start, cache=cache, quiet=True)


@pytest.mark.parametrize("after", [1, 4, 7, 11])
@pytest.mark.parametrize(
    "changes", [{}, {"carry_state": True}, {"grad_accumulation": 2}, {"firing_rate_target": 0.2}], ids=str
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
        "tokenizer.json",
        "metrics.jsonl",
        "samples.txt",
        "checkpoints",
    }


def test_existing_run_is_not_overwritten(trained, cache):
    with pytest.raises(SpikegptError, match="holds a run already; continue it with: spikegpt train --resume"):
        training.train(MODEL, TRAIN, trained, cache=cache)


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
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(training._Trainer, "_forward", full)
    with pytest.raises(
        SpikegptError,
        match=r"step 1: the GPU's memory is full at batch_size 4 x ctx_len 16: lower --batch-size .* 2\.00 GiB",
    ):
        make_run()


def test_unwritable_run_folder_is_an_error(cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpikegptError, match="cannot write the run folder"):
        training.train(MODEL, TRAIN, tmp_path / "file" / "run", cache=cache)


def test_dead_and_saturated_layers_are_named(make_run, capsys):
    make_run(model=dataclasses.replace(MODEL, neuron=NeuronConfig(threshold=1e6)))
    assert "blocks.1.ffn.value_neuron is dead (mean firing 0.00%)" in capsys.readouterr().err


def test_firing_rate_target_pulls_the_rate(make_run):
    rates = [
        read_metrics(make_run(str(t), steps=80, lr=1e-2, firing_rate_target=t, firing_rate_weight=50))[-1][
            "firing_rate"
        ]
        for t in (0.05, 0.5)
    ]
    assert rates[0] < 0.2 < 0.35 < rates[1]


def test_learning_rate_warms_up_and_ends_at_lr_final():
    config = dataclasses.replace(TRAIN, steps=10, warmup_steps=4, lr=1.0, lr_final=0.1)
    assert [learning_rate(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    # by hand: half way down the cosine
    assert learning_rate(7, config) == pytest.approx(0.55)
    assert learning_rate(10, config) == pytest.approx(0.1)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_names_the_command_that_resumes(tmp_path, cache, number):
    arguments = [
        sys.executable,
        *command(tmp_path / "run", cache, "--steps", "100000", "--log-every", "1", "--eval-every", "0"),
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    # the first progress line: the training has begun
    first = process.stdout.readline()
    os.kill(process.pid, number)
    output = first + process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert f"continue with: spikegpt train --resume {tmp_path / 'run'}" in output
    assert latest_checkpoint(tmp_path / "run") is not None


def test_two_processes_train_like_one_with_the_doubled_batch(tmp_path, cache):
    common = ["--steps", "6", "--dropout", "0", "--log-every", "1", "--warmup-steps", "0"]
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
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name) if line["kind"] == "train"] for name in ("one", "two")
    ]
    # float32 sums in another order; a spike that flips by rounding moves a loss by far more than this
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    ours, theirs = (load_file(latest_checkpoint(tmp_path / name) / "model.safetensors") for name in ("one", "two"))
    assert max((ours[key] - theirs[key]).abs().max() for key in ours) < 1e-3


def test_the_share_of_synaptic_operations_is_worked_out_by_hand():
    spikes = {
        "a": torch.tensor([[[0.0, 2.0, -1.0, 0.0]]]),
        "b": torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]),
        "silent": torch.zeros(1, 1, 4),
    }
    # half of a's neurons fire into 300 weights, a quarter of b's into 100
    assert synop_share(spikes, {"a": 300, "b": 100}).item() == pytest.approx((0.5 * 300 + 0.25 * 100) / 400)


def test_the_budget_silences_neurons(make_run):
    rates = {}
    for budget in (0.0, 0.02):
        run = make_run(f"budget{budget}", steps=40, synop_budget=budget, synop_weight=10.0, synop_warmup=0.1, lr=1e-2)
        rates[budget] = [line["firing_rate"] for line in read_metrics(run) if line["kind"] == "valid"][-1]
    assert rates[0.02] < 0.7 * rates[0.0]


@pytest.mark.parametrize("budget, weight", [(0.05, 20.0), (0.1, 10.0), (0.2, 5.0), (0.4, 5.0)])
def test_an_excess_over_a_small_budget_counts_in_proportion(budget, weight):
    assert synop_weight(TrainConfig(synop_budget=budget)) == pytest.approx(weight)


def test_the_budget_shrinks_to_its_end_over_the_warmup(make_run):
    budget = TrainConfig(steps=100, synop_budget=0.2, synop_warmup=0.5)
    assert [synop_budget(step, budget) for step in (0, 25, 50, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert synop_budget(0, TrainConfig(synop_warmup=0.0, synop_budget=0.2)) == 0.2


def test_distillation_is_the_divergence_worked_out_by_hand():
    ours, theirs = torch.tensor([[[0.0, 0.0]]]), torch.log(torch.tensor([[[0.25, 0.75]]]))
    wanted = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert distillation(ours, theirs).item() == pytest.approx(wanted, rel=1e-6)
    assert distillation(theirs, theirs).item() == pytest.approx(0.0, abs=1e-7)


def test_a_pupil_learns_what_its_teacher_predicts(make_run):
    teacher = make_run("teacher", model=MODEL.twin(), steps=120, lr=1e-2)
    alone = make_run("alone", steps=40, lr=1e-2)
    pupil = make_run("pupil", steps=40, lr=1e-2, teacher=str(teacher), teacher_weight=1.0)
    ids = torch.randint(97, 122, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        taught, *others = (load_model(run)[0](ids).logits for run in (teacher, alone, pupil))
    assert distillation(others[1], taught) < distillation(others[0], taught)


def test_a_resumed_pupil_ends_as_an_unbroken_one(make_run, cache):
    teacher = str(make_run("teacher", model=MODEL.twin()))
    whole = make_run("whole", teacher=teacher)
    broken = make_run("broken", teacher=teacher)
    for file in (broken / "checkpoints" / "step-00000012").iterdir():
        file.unlink()
    training.resume(broken, cache=cache, quiet=True)
    assert weights_of(broken) == weights_of(whole)


def test_a_teacher_with_another_tokenizer_is_refused(make_run):
    teacher = make_run("teacher", model=MODEL.twin(), tokenizer="char")
    with pytest.raises(SpikegptError, match="has another tokenizer"):
        make_run("pupil", teacher=str(teacher))
    with pytest.raises(SpikegptError, match="nowhere is not the folder of a run"):
        make_run("orphan", teacher="nowhere")


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
