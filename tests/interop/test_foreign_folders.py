"""Folders of weights as people keep them: which file is meant, and what stands in the place of a config.json."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.interop.names import huggingface_name
from spikegpt.interop.weights import import_weights
from spikegpt.model.network import SpikeGPT

WEIGHTS = {
    huggingface_name(name): tensor
    for name, tensor in SpikeGPT(ModelConfig(n_layer=1, n_embd=8, spiking="none")).state_dict().items()
}
CONFIG = {"model_type": "rwkv", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 256}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
HALVES = [dict(list(WEIGHTS.items())[:9]), dict(list(WEIGHTS.items())[9:])]


def write(folder: Path, files: dict) -> Path:
    """`folder` with these files: JSON, safetensors or bytes by their names, else what torch.save writes."""
    folder.mkdir(exist_ok=True)
    for name, values in files.items():
        if isinstance(values, bytes):
            (folder / name).write_bytes(values)
        elif name.endswith(".json"):
            (folder / name).write_text(json.dumps(values))
        elif name.endswith(".safetensors"):
            save_file(values, folder / name)
        else:
            torch.save(values, folder / name)
    return folder


def assert_is_read(folder: Path, **options) -> ModelConfig:
    config = import_weights(folder, folder.parent / "out", spiking="none", **options)
    found = load_file(folder.parent / "out" / "model.safetensors")
    assert all(torch.equal(found["emb.weight"], tensor) for name, tensor in WEIGHTS.items() if "embeddings" in name)
    assert len(found) == len(WEIGHTS)
    return config


@pytest.mark.parametrize(
    "name", ["x.PTH", "X.Pt", "x.SafeTensors", "weights", "rwkv-4.0", "x.pth.tar", "pytorch_model"]
)
def test_the_only_weights_of_a_folder_are_meant_whatever_their_name(name, tmp_path):
    folder = write(tmp_path / "rwkv", {"notes.txt": b"12345678{ no weights", "data.npz": b"PK\3\4no archive"})
    save_file(WEIGHTS, folder / name) if "afe" in name else torch.save(WEIGHTS, folder / name)
    assert_is_read(folder)


@pytest.mark.parametrize(
    "others",
    [
        {"optimizer.pt": {"state": {0: torch.ones(2)}}},
        {"training_args.bin": ModelConfig()},
        {"scheduler.pt": {}, "scaler.pt": {}, "rng_state_0.pth": {"python": (1,)}, "optim-100.pth": {}},
        {"statistics.pth": {"mean": torch.ones(2)}, "loss.pt": torch.ones(2)},
    ],
)
def test_weights_are_told_from_the_state_of_their_training(others, tmp_path):
    assert_is_read(write(tmp_path / "rwkv", {"epoch3.pth": WEIGHTS, **others}))


@pytest.mark.parametrize("other", [WEIGHTS, POINTER, b"damaged"])
def test_of_two_that_may_be_meant_none_is_chosen(other, tmp_path):
    files = {"a.pth": WEIGHTS, "b.pth": other, "optimizer.pt": {}}
    with pytest.raises(SpikegptError, match=r"holds several files of weights; give one: [^ ]*a.pth, [^ ]*b.pth$"):
        import_weights(write(tmp_path / "rwkv", files), tmp_path / "out")


@pytest.mark.parametrize(
    "index", ["model.fp16.safetensors.index.json", "pytorch_model.safetensors.index.json", "x.index.json"]
)
def test_parts_are_joined_by_an_index_of_any_name(index, tmp_path):
    names = {name: f"part-{number}.safetensors" for number, half in enumerate(HALVES) for name in half}
    parts = {f"part-{number}.safetensors": half for number, half in enumerate(HALVES)}
    assert_is_read(write(tmp_path / "rwkv", {**parts, index: {"weight_map": names}, "optimizer.pt": {}}))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "content, words",
    [(POINTER, "a pointer of Git LFS, .* git lfs pull"), (b"\n<!DOCTYPE html>", "HTML or XML, "), (b"", "is not JSON")],
    ids=["lfs", "html", "empty"],
)
def test_what_stands_in_the_place_of_json_is_named(name, content, words, tmp_path):
    weights = {} if "index" in name else {"model.safetensors": WEIGHTS}
    with pytest.raises(SpikegptError, match=f"{name} .*{words}"):
        import_weights(write(tmp_path / "rwkv", {**weights, name: content}), tmp_path / "out")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_may_begin_with_a_byte_order_mark(encoding, tmp_path):
    names = dict.fromkeys(WEIGHTS, "part.safetensors")
    files = {
        "config.json": json.dumps({**CONFIG, "context_length": 77}).encode(encoding),
        "model.safetensors.index.json": json.dumps({"weight_map": names}).encode(encoding),
        "tokenizer.json": json.dumps({"format": 1, "tokenizer": "byte"}).encode(encoding),
    }
    assert assert_is_read(write(tmp_path / "rwkv", {**files, "part.safetensors": WEIGHTS})).ctx_len == 77


@pytest.mark.parametrize("name", ["context_length", "max_position_embeddings"])
@pytest.mark.parametrize("value", [-1, 0, 10**30, True, 1.5, "77", [77]])
def test_a_context_that_is_none_is_refused_by_the_name_of_its_file(name, value, tmp_path):
    folder = write(tmp_path / "rwkv", {"model.safetensors": WEIGHTS, "config.json": {**CONFIG, name: value}})
    with pytest.raises(SpikegptError, match=str(folder)):
        import_weights(folder, tmp_path / "out")


def test_a_context_has_either_of_its_names_in_the_library(tmp_path):
    files = {"model.safetensors": WEIGHTS, "config.json": {**CONFIG, "max_position_embeddings": 77}}
    assert assert_is_read(write(tmp_path / "rwkv", files)).ctx_len == 77


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_a_configuration_that_is_no_file_is_refused(make, tmp_path):
    folder = write(tmp_path / "rwkv", {"model.safetensors": WEIGHTS})
    make(folder / "config.json")
    with pytest.raises(SpikegptError, match=r"config.json (is a folder, pipe or device|does not exist)"):
        import_weights(folder, tmp_path / "out")


@pytest.mark.parametrize("is_named", [False, True])
def test_a_part_without_its_index_is_called_a_part(is_named, tmp_path):
    folder = write(tmp_path / "rwkv", {"model-00001-of-00002.safetensors": HALVES[0]})
    with pytest.raises(SpikegptError, match=r"is a part of 2, .* get the index"):
        import_weights(folder / "model-00001-of-00002.safetensors" if is_named else folder, tmp_path / "out")


def test_the_names_of_sizes_that_our_class_takes_are_read(tmp_path):
    ours = ModelConfig(n_layer=1, n_embd=8, spiking="none", ctx_len=77)
    fields = {"num_hidden_layers": 1, "hidden_size": 8, "max_position_embeddings": 77, "spiking": "none"}
    weights = {f"spikegpt.{name}": tensor for name, tensor in SpikeGPT(ours).state_dict().items()}
    files = {"model.safetensors": weights, "config.json": {"model_type": "spikegpt", **fields}}
    assert import_weights(write(tmp_path / "rwkv", files), tmp_path / "out").ctx_len == 77
