"""`--device` of every verb that runs a model."""

import json

import accelerate
import pytest
import torch
from command_line import spikegpt

from spikegpt.checkpoint.run import read_run_config
from spikegpt.config import TrainConfig
from spikegpt.train.beginning import make_accelerator

TRAINING = ["--n-layer", "1", "--n-embd", "8", "--ctx-len", "8", "--steps", "1", "--eval-tokens", "64", "--json"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--out", "OUT"],
        ["train", "--resume", "RUN"],
        ["generate", "RUN"],
        ["evaluate", "RUN"],
        ["evaluate", "RUN", "--last-word", "FILE"],
        ["measure", "RUN", "--out", "OUT"],
        ["compare", "RUN", "--out", "OUT"],
        ["finetune-classify", "RUN", "--train", "EXAMPLES", "--test", "EXAMPLES", "--out", "OUT"],
    ],
    ids=" ".join,
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(arguments, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    files = {"RUN": trained, "OUT": tmp_path / "out", "FILE": tmp_path / "lines", "EXAMPLES": tmp_path / "rows.tsv"}
    files["FILE"].write_text("two words\n")
    files["EXAMPLES"].write_text("text\tlabel\n" + "good day\tgood\nbad day\tbad\n" * 10)
    arguments = [files.get(argument, argument) for argument in arguments]
    refused = spikegpt(*arguments, "--device", "cuda:7", check=False)
    assert refused.returncode == 1 and "error: cuda:7: " in refused.stderr
    assert refused.stderr.endswith("; available: cpu\n")
    assert not files["OUT"].exists()


def test_the_device_is_no_part_of_a_run(tmp_path, cache):
    spikegpt("train", *TRAINING, "--cache", cache, "--out", tmp_path / "one", "--threads", "1")
    spikegpt("train", *TRAINING, "--cache", cache, "--out", tmp_path / "other", "--threads", "1", "--device", "cpu")
    assert read_run_config(tmp_path / "one") == read_run_config(tmp_path / "other")
    (text,) = json.loads(spikegpt("generate", tmp_path / "one", "--device", "cpu", "--json").stdout)
    assert text["text"]


@pytest.mark.parametrize(("device", "is_cpu"), [("cpu", True), ("auto", False), ("cuda", False)])
def test_training_asks_accelerate_for_the_device(device, is_cpu, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: asked.append(options["cpu"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    make_accelerator(TrainConfig(), device, tmp_path)
    assert asked == [is_cpu]
