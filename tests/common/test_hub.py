"""Models by their name on the Hugging Face hub, tried on a hub of our own that serves a folder."""

import sys
from pathlib import Path

import processes
import pytest
import torch

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.hub import is_hub_name
from spikegpt.config import ModelConfig
from spikegpt.interop.weights import export_weights


@pytest.fixture
def import_from(tmp_path, monkeypatch, hub):
    """Runs `spikegpt import` against the hub in an empty folder."""
    monkeypatch.setenv("HF_ENDPOINT", hub[1])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "here").mkdir()

    def run(*arguments):
        command = [sys.executable, "-m", "spikegpt", "import", *map(str, arguments)]
        return processes.run(command, cwd=tmp_path / "here")

    return run


@pytest.fixture
def dense(make_run):
    return make_run("dense", ModelConfig(n_layer=2, n_embd=16, ctx_len=16, spiking="none"))


@pytest.mark.slow
def test_a_folder_on_the_hub_becomes_a_model(hub, import_from, dense, tmp_path):
    export_weights(dense, hub[0] / "some" / "model", "huggingface")
    done = import_from("some/model", "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_model(path)[0].state_dict() for path in (dense, tmp_path / "model"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_file_on_the_hub_takes_its_tokenizer_from_another_repository(hub, import_from, dense, tmp_path):
    (hub[0] / "some" / "weights").mkdir(parents=True)
    export_weights(dense, hub[0] / "some" / "weights" / "rwkv.pth", "pth")
    export_weights(dense, hub[0] / "other" / "tokens", "huggingface")
    done = import_from("some/weights/rwkv.pth", "--tokenizer", "other/tokens", "--out", tmp_path / "model", "--json")
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "model")[1].vocab_size == 256


@pytest.mark.slow
def test_a_repository_of_files_asks_for_one_of_them(hub, import_from, dense):
    (hub[0] / "some" / "weights").mkdir(parents=True)
    export_weights(dense, hub[0] / "some" / "weights" / "rwkv.pth", "pth")
    done = import_from("some/weights")
    assert done.returncode == 1 and "name one of its files, some/weights/FILE: it has rwkv.pth" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some/model", "neither a file or folder some/model here nor a repository some/model on the hub"),
        ("nobody/there/x.pth", "nor a repository nobody/there on the hub"),
    ],
)
def test_what_is_not_there_is_said(import_from, name, message):
    done = import_from(name)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_a_missing_file_is_named(hub, import_from, dense):
    export_weights(dense, hub[0] / "some" / "model", "huggingface")
    done = import_from("some/model/other.pth")
    assert done.returncode == 1 and "some/model on the hub has no file other.pth" in done.stderr


def test_without_a_network_it_says_so(import_from, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = import_from("some/model")
    assert done.returncode == 1 and "the hub cannot be reached: check the network" in done.stderr


def test_a_path_is_not_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names = ("BlinkDL/rwkv-4-pile-169m", "BlinkDL/rwkv-4-pile-169m/x.pth", "runs/x.pth", "x.pth", "/a/b")
    assert [is_hub_name(Path(name)) for name in names] == [True, True, False, False, False]
