"""A device by its name: found in one place, refused with what is there; and everything that runs a model follows it."""

import json
import os
import sys
from pathlib import Path

import processes
import pytest
import torch

from spikegpt.common.devices import available_devices, find_device, finish
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.model import SpikeGPT

TREE = Path(__file__).parents[2]
HELPERS = TREE / "tests" / "helpers"


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that torch finds so many GPUs."""

    def pretend(count: int, cuda: str | None = "13.0") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.version, "cuda", cuda)

    return pretend


def test_auto_is_the_gpu_where_there_is_one(gpus):
    gpus(1)
    assert find_device("auto") == find_device() == torch.device("cuda")


def test_auto_is_the_cpu_where_there_is_no_gpu(gpus):
    gpus(0)
    assert find_device("auto") == torch.device("cpu") and available_devices() == ["cpu"]


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_that_is_there_is_found_by_its_name(gpus, name):
    gpus(2)
    assert find_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "", "CPU", "cuda 0"])
def test_a_name_of_no_device_is_refused(gpus, name):
    gpus(1)
    with pytest.raises(SpikegptError, match=r"is unknown; known: auto, cpu, cuda, cuda:N; available: cpu, cuda:0"):
        find_device(name)


@pytest.mark.parametrize(
    ("cuda", "name", "why"),
    [(None, "cuda", "this torch was built without CUDA"), ("13.0", "cuda:0", "no GPU was found")],
)
def test_a_gpu_that_is_not_there_is_refused_with_the_reason(gpus, cuda, name, why):
    gpus(0, cuda)
    with pytest.raises(SpikegptError, match=f"{name}: {why}; available: cpu$"):
        find_device(name)


def test_a_gpu_beyond_the_last_is_refused(gpus):
    gpus(2)
    with pytest.raises(SpikegptError, match=r"cuda:9: there is no such GPU; available: cpu, cuda:0, cuda:1"):
        find_device("cuda:9")


def test_a_device_of_torchs_is_taken_as_it_is():
    assert find_device(torch.device("meta")) == torch.device("meta")


def test_a_clock_waits_for_a_gpu_and_for_nothing_else(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    finish(torch.device("cpu"))
    finish(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


def test_a_model_without_its_head_still_has_a_device():
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=8), init=False)
    model.head = torch.nn.Identity()
    assert model.device == torch.device("cpu") and model.to("meta").device == torch.device("meta")


def test_nobody_asks_the_head_where_a_model_is():
    asking = [path for path in (TREE / "spikegpt").rglob("*.py") if "head.weight.device" in path.read_text()]
    assert asking == []


def test_looking_up_names_needs_no_torch_before():
    code = "import sys, spikegpt.common.devices; sys.exit('torch' in sys.modules)"
    assert processes.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def figures(trained, tmp_path_factory):
    """What -> (its figure on the CPU, its figure on a second device)."""
    pytest.importorskip("lm_eval")
    command = [sys.executable, HELPERS / "on_second_device.py", trained, tmp_path_factory.mktemp("classifiers")]
    path = os.pathsep.join(map(str, (TREE, HELPERS)))
    done = processes.run(command, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    return {what: pair for what, *pair in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "what",
    [
        "evaluate_stream",
        "evaluate_windows",
        "score_continuations",
        "measure",
        "measure_speed",
        "lm_eval",
        "finetune",
        "classify",
    ],
)
def test_figures_are_the_same_on_a_second_device(figures, what):
    here, there = figures[what]
    assert there == pytest.approx(here, rel=1e-4)


def test_text_is_the_same_on_a_second_device(figures):
    here, there = figures["generate"]
    assert here == there
