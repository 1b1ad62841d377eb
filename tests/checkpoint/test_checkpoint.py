"""What is on disk survives crashes, and what does not fit is refused in words."""

import errno
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from spikegpt.checkpoint import run as ckpt
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def newest(run):
    return ckpt.latest_checkpoint(run, warn=lambda message: None)


def test_model_comes_back_as_it_was(run):
    model, tokenizer = load_model(newest(run))
    stored = load_file(newest(run) / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.name == "byte"
    assert not model.training


def test_run_can_be_moved(run, tmp_path):
    moved = run.rename(tmp_path / "elsewhere")
    assert load_model(moved)[0].config.n_layer == 2


def test_newest_k_and_the_best_are_kept(make_run):
    run = make_run(steps=12, save_every=2, keep=2, eval_every=0)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]
    ckpt.prune_checkpoints(run, 1, best_step=10, step=12)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json", "config.json"])
def test_truncated_checkpoint_is_passed_over_with_a_message(run, name):
    last = newest(run)
    content = (last / name).read_bytes()
    (last / name).write_bytes(content[: len(content) // 2])
    messages = []
    before = ckpt.latest_checkpoint(run, messages.append)
    assert ckpt.step_of(before) < ckpt.step_of(last)
    assert name in messages[0]
    assert "using the one before it" in messages[0]


def test_flipped_bit_is_noticed(run):
    path = newest(run) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "sha256" in ckpt.fault_of(path.parent)


def test_checkpoint_without_manifest_is_not_whole(run):
    (newest(run) / "manifest.json").unlink()
    assert ckpt.step_of(newest(run)) == 8


def test_unfinished_checkpoint_is_never_taken(run):
    shutil.copytree(newest(run), run / "checkpoints" / ".unfinished-00000099")
    assert ckpt.step_of(newest(run)) == 12


def test_weights_of_another_shape_name_the_size(run):
    path = newest(run) / "config.json"
    values = json.loads(path.read_text())
    values["model"]["n_embd"] = 24
    path.write_text(json.dumps(values))
    (path.parent / "manifest.json").unlink()
    with pytest.raises(SpikegptError, match=r"config\.json says n_embd 24, the weights have 16"):
        load_model(path.parent)


def test_missing_tensor_is_named(run):
    folder = newest(run)
    weights = load_file(folder / "model.safetensors")
    del weights["head.weight"]
    save_file(weights, folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    with pytest.raises(SpikegptError, match=r"'head.weight' is missing; the checkpoint is of another configuration"):
        load_model(folder)


def test_newer_format_says_to_install_a_newer_version(run):
    path = newest(run) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    (path.parent / "manifest.json").unlink()
    with pytest.raises(SpikegptError, match="has format 99, this spikegpt reads up to 1; install a newer spikegpt"):
        load_model(path.parent)


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize(
    "save", [lambda path: path.write_bytes(pickle.dumps(_Bomb())), lambda path: torch.save({"x": _Bomb()}, path)]
)
def test_pickle_is_refused_and_never_loaded(run, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(newest(run) / "model.safetensors")
    folder = run / "checkpoints" / "step-00000012"
    (folder / "manifest.json").unlink()
    with pytest.raises(SpikegptError, match="is a pickle, which could run code when loaded: refused"):
        load_model(folder)
    assert not (tmp_path / "exploded").exists()


def test_full_disk_leaves_the_checkpoint_before(run, monkeypatch):
    model, tokenizer = load_model(run)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpikegptError, match=r"No space left on device; the last good checkpoint is .*step-00000012"):
        ckpt.save_checkpoint(run, 20, model, tokenizer, {}, {})
    monkeypatch.undo()
    assert ckpt.fault_of(newest(run)) is None
    assert not list((run / "checkpoints").glob(".unfinished*"))


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(SpikegptError, match="holds no whole checkpoint"):
        load_model(tmp_path)
    with pytest.raises(SpikegptError, match="is not the folder of a run"):
        load_model(tmp_path / "nothing")
