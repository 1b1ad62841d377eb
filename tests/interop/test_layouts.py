"""Imports in every layout in which people keep weights: the same tensors come out, or one line says why not."""

import gzip
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from world import write_vocabulary

from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.interop.names import huggingface_name
from spikegpt.interop.opening import open_weights
from spikegpt.interop.weights import import_weights
from spikegpt.model.network import SpikeGPT

CONFIG = ModelConfig(n_layer=2, n_embd=8, spiking="none")


def random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in SpikeGPT(CONFIG, init=False).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


WEIGHTS = random_weights()
THEIRS = {huggingface_name(name): tensor for name, tensor in WEIGHTS.items()}
THEIR_CONFIG = {"model_type": "rwkv", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 256}


def below(prefix: str, weights=WEIGHTS) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def imported(source: Path, **options) -> dict[str, torch.Tensor]:
    import_weights(source, source.parent / "out", **options)
    return load_file(source.parent / "out" / "model.safetensors")


def assert_the_weights(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in found)


def saved(tmp_path, values) -> Path:
    torch.save(values, tmp_path / "rwkv.pth")
    return tmp_path / "rwkv.pth"


def folder(tmp_path, files: dict, config: dict | None = None) -> Path:
    """A folder of weights; a dictionary under a .json name is written as such."""
    (tmp_path / "rwkv").mkdir()
    for name, values in files.items():
        path = tmp_path / "rwkv" / name
        if name.endswith(".json"):
            path.write_text(json.dumps(values))
        else:
            (save_file if name.endswith(".safetensors") else torch.save)(values, path)
    if config is not None:
        (tmp_path / "rwkv" / "config.json").write_text(json.dumps(config))
    return tmp_path / "rwkv"


@pytest.mark.parametrize(
    "prefix",
    [
        "module.module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "_forward_module.model._orig_mod.",
        "_fsdp_wrapped_module.",
        "model.",
        "net.rwkv.",
        "rwkv.",
        "spikegpt.",
    ],
)
def test_what_stands_before_every_name_is_taken_away(prefix, tmp_path):
    assert_the_weights(imported(saved(tmp_path, below(prefix))))


def test_wrappers_of_blocks_inside_a_name_are_taken_away(tmp_path):
    inside = {n.replace("att.", "_fsdp_wrapped_module.att._checkpoint_wrapped_module."): t for n, t in WEIGHTS.items()}
    assert_the_weights(imported(saved(tmp_path, inside)))


def test_hugging_faces_names_below_a_prefix(tmp_path):
    assert_the_weights(imported(saved(tmp_path, below("model.", THEIRS))))


TRAINING = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "note": None}


@pytest.mark.parametrize(
    "values",
    [
        *({key: WEIGHTS, **TRAINING} for key in ("state_dict", "model_state_dict", "model_state", "module", "params")),
        {**WEIGHTS, **TRAINING},
        {"checkpoint": {"model": below("module.")}, "step": 1},
        {"state_dict": below("model."), "pytorch-lightning_version": "2.0", "hyper_parameters": {}},
        {name: torch.nn.Parameter(tensor) for name, tensor in WEIGHTS.items()},
        {name: tensor.double() for name, tensor in WEIGHTS.items()},
    ],
)
def test_the_weights_are_found_beside_other_things(values, tmp_path):
    assert_the_weights(imported(saved(tmp_path, values)))


@pytest.mark.parametrize(
    "values, names",
    [
        ({"model": WEIGHTS, "ema": WEIGHTS}, r"under \['model'\], \['ema'\]"),
        (below("model.") | below("model_ema.module."), r"under 'model.', 'model_ema.'"),
        (WEIGHTS | below("module."), "emb.weight and module.emb.weight are both emb.weight"),
    ],
)
def test_of_two_models_in_a_file_none_is_chosen(values, names, tmp_path):
    with pytest.raises(SpikegptError, match=names):
        imported(saved(tmp_path, values))


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"loss.weight": torch.zeros(1)}, "unexpected: loss.weight"),
        ({"head.weight": WEIGHTS["head.weight"].to(torch.int8)}, r"head.weight holds torch.int8"),
        ({"head.weight": WEIGHTS["head.weight"] + 0j}, r"head.weight holds torch.complex64"),
        ({"head.weight": WEIGHTS["head.weight"].to_sparse()}, r"head.weight holds .*sparse"),
        ({"head.weight": torch.zeros(1, 1).expand(256, 8)}, "head.weight has fewer numbers than its shape says"),
        ({"ln_out.bias": torch.full((8,), float("nan"))}, "ln_out.bias holds NaN or infinite"),
        ({"ln_out.bias": torch.full((8,), float("-inf"))}, "ln_out.bias holds NaN or infinite"),
        (
            {"ln_out.bias": torch.full((8,), 1e300, dtype=torch.float64)},
            "ln_out.bias holds NaN or infinite numbers, as float32",
        ),
        ({"emb.weight": WEIGHTS["emb.weight"].T}, r"blocks.0.att.key.weight is \(8, 8\), want \(256, 256\)"),
        ({"emb.weight": torch.zeros(5)}, r"emb.weight is \(5,\), want \(vocab_size, n_embd\)"),
        ({"emb.weight": torch.zeros(2, 2, 2)}, r"emb.weight is \(2, 2, 2\), want"),
        ({"blocks.999999999.ln1.bias": torch.zeros(8)}, r"has blocks.999999999.\*, but no blocks.2.\*"),
    ],
)
def test_a_tensor_at_fault_is_named_and_nothing_left_behind(change, fault, tmp_path):
    with pytest.raises(SpikegptError, match=fault):
        imported(saved(tmp_path, WEIGHTS | change))
    assert not (tmp_path / "out").exists()


SHARDS = {
    f"model-{number}.safetensors": dict(part)
    for number, part in ((1, list(THEIRS.items())[:9]), (2, list(THEIRS.items())[9:]))
}
WEIGHT_MAP = {name: file for file, part in SHARDS.items() for name in part}
INDEX = "model.safetensors.index.json"


def test_sharded_files_are_read_together(tmp_path):
    assert_the_weights(imported(folder(tmp_path, {**SHARDS, INDEX: {"weight_map": WEIGHT_MAP}}, THEIR_CONFIG)))


def test_sharded_pickles_are_read_together(tmp_path):
    shards = {name.replace("safetensors", "bin"): part for name, part in SHARDS.items()}
    index = {"weight_map": {name: file.replace("safetensors", "bin") for name, file in WEIGHT_MAP.items()}}
    assert_the_weights(imported(folder(tmp_path, {**shards, "pytorch_model.bin.index.json": index}, THEIR_CONFIG)))


@pytest.mark.parametrize(
    "index, fault",
    [
        ({}, "has no 'weight_map'"),
        ({"weight_map": [1]}, "has no 'weight_map'"),
        ({"weight_map": {"a": 1}}, "has no 'weight_map'"),
        ({"weight_map": {"a": "../other.bin"}}, "outside its folder"),
        ({"weight_map": {"a": INDEX}}, "neither a file of torch.save"),
        ({"weight_map": {"a": "model-3.safetensors"}}, "missing: .*model-3"),
        ({"weight_map": {**WEIGHT_MAP, "a": "model-1.safetensors"}}, "not there: a in model-1.safetensors"),
    ],
)
def test_an_index_at_fault_is_named(index, fault, tmp_path):
    with pytest.raises(SpikegptError, match=fault):
        imported(folder(tmp_path, {**SHARDS, INDEX: index}, THEIR_CONFIG))


def test_a_folder_with_one_file_of_weights_means_that_file(tmp_path):
    assert_the_weights(imported(folder(tmp_path, {"epoch3.pth": WEIGHTS})))


def test_a_folder_with_several_files_of_weights_asks_for_one(tmp_path):
    with pytest.raises(SpikegptError, match=r"give one: .*a.pth, .*b.pth"):
        imported(folder(tmp_path, {"a.pth": WEIGHTS, "b.pth": WEIGHTS}))


def test_a_folder_without_weights_says_what_it_needs(tmp_path):
    with pytest.raises(SpikegptError, match=r"holds no weights; want one of model.safetensors"):
        imported(folder(tmp_path, {"notes.json": {}}))


def test_a_tied_head_is_the_embedding(tmp_path):
    weights = {name: tensor for name, tensor in THEIRS.items() if name != "head.weight"}
    found = imported(folder(tmp_path, {"model.safetensors": weights}, {**THEIR_CONFIG, "tie_word_embeddings": True}))
    assert torch.equal(found["head.weight"], WEIGHTS["emb.weight"])


def test_the_context_is_what_the_configuration_says(tmp_path):
    source = folder(tmp_path, {"model.safetensors": THEIRS}, {**THEIR_CONFIG, "context_length": 77})
    assert import_weights(source, tmp_path / "said").ctx_len == 77
    assert import_weights(source, tmp_path / "given", ctx_len=5).ctx_len == 5


def test_rescaling_and_what_changes_no_number_is_taken(tmp_path):
    others = {"rescale_every": 6, "use_cache": False, "bos_token_id": 3, "torch_dtype": "float16"}
    source = folder(tmp_path, {"model.safetensors": THEIRS}, {**THEIR_CONFIG, **others, "intermediate_size": None})
    assert_the_weights(imported(source))


@pytest.mark.parametrize(
    "field, value",
    [
        ("layer_norm_epsilon", 1e-2),
        ("attention_hidden_size", 16),
        ("intermediate_size", 64),
        ("tie_word_embeddings", True),
        ("context_length", "many"),
        ("quantization_config", {"bits": 8}),
        ("model_type", "llama"),
    ],
)
@pytest.mark.parametrize(
    "name, is_folder", [("model.safetensors", True), ("model.safetensors", False), ("rwkv.pth", True), ("x.bin", True)]
)
def test_what_the_configuration_says_otherwise_is_refused(field, value, name, is_folder, tmp_path):
    source = folder(tmp_path, {name: THEIRS}, {**THEIR_CONFIG, field: value})
    with pytest.raises(SpikegptError, match=f"config.json .*{field}"):
        imported(source if is_folder else source / name)


@pytest.mark.parametrize(
    "field, ours", [("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"), ("vocab_size", "vocab_size")]
)
def test_sizes_of_another_model_are_refused_before_anything_is_made(field, ours, tmp_path):
    source = folder(tmp_path, {"model.safetensors": THEIRS}, {**THEIR_CONFIG, field: 10**9})
    with pytest.raises(SpikegptError, match=f"config.json says {ours} 1000000000, its tensors are of {ours} "):
        imported(source)


def test_a_model_of_ours_keeps_its_whole_configuration(tmp_path):
    (tmp_path / "mine").mkdir()
    config = ModelConfig(n_layer=1, n_embd=8, hidden_levels=3, ctx_len=9)
    save_model(tmp_path / "mine", SpikeGPT(config), ByteTokenizer())
    assert import_weights(tmp_path / "mine", tmp_path / "out") == config
    ours, again = (load_model(tmp_path / name)[0].state_dict() for name in ("mine", "out"))
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_switches_of_a_published_model_of_ours_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    config = ModelConfig(n_layer=2, n_embd=8, spiking="output", binary_embedding=False, rescale_every=1)
    save_model(tmp_path / "mine", SpikeGPT(config), ByteTokenizer())
    assert import_weights(tmp_path / "mine", tmp_path / "out") == config


def test_the_layout_of_the_auto_classes_comes_back(tmp_path):
    (tmp_path / "mine").mkdir()
    config = ModelConfig(n_layer=1, n_embd=8, hidden_levels=3)
    save_model(tmp_path / "mine", SpikeGPT(config), ByteTokenizer())
    save_file(below("spikegpt.", load_file(tmp_path / "mine" / "model.safetensors")), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "spikegpt", **config.to_dict()}))
    assert import_weights(tmp_path / "model.safetensors", tmp_path / "out") == config


@pytest.mark.parametrize("name", ["rwkv.pth", "rwkv.safetensors"])
@pytest.mark.parametrize(
    "data, words",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>not found</html>", "is HTML"),
        (b"GGUF\3\0\0\0" + bytes(50), "is a GGUF file"),
        (b"\x93NUMPY\1\0" + bytes(50), "is an array of NumPy"),
        (gzip.compress(b"weights", mtime=0), "gzip; unpack it"),
        (b"a text of some length, no more", "begins with b'a text"),
        (b"\x08\x07\x12\x07pytorch" + bytes(50), "neither a file of torch.save nor of safetensors"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_is_no_weights_is_told_by_its_beginning(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SpikegptError, match=words):
        imported(tmp_path / name)


def test_weights_are_told_by_their_beginning_whatever_their_name(tmp_path):
    # a header of 60 + 256 bytes, as a file without padding may have one, begins with "<"
    save_file({"emb.weight": torch.zeros(2, 2)}, tmp_path / "padded.safetensors")
    padded = (tmp_path / "padded.safetensors").read_bytes()
    length = int.from_bytes(padded[:8], "little")
    header = padded[8 : 8 + length].ljust(316)
    (tmp_path / "rwkv.pth").write_bytes((316).to_bytes(8, "little") + header + padded[8 + length :])
    assert open_weights(tmp_path / "rwkv.pth")["emb.weight"].shape == (2, 2)


def test_an_archive_that_was_packed_anew_gives_the_same_numbers(tmp_path):
    torch.save(WEIGHTS, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "rwkv.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    assert_the_weights(imported(tmp_path / "rwkv.pth"))


def test_an_archive_of_numpy_is_called_an_archive(tmp_path):
    np.savez(tmp_path / "rwkv.npz", **{"emb.weight": np.zeros((2, 2))})
    with pytest.raises(SpikegptError, match=r"is a zip archive, but not of torch.save: it holds emb.weight.npy"):
        imported(tmp_path / "rwkv.npz")


@pytest.mark.parametrize("values", [[1], {}, torch.zeros(2), {None: 1}, {"a": {"b": torch.zeros(1)}}])
def test_a_file_without_an_embedding_says_what_it_holds(values, tmp_path):
    with pytest.raises(SpikegptError, match=r"has no emb.weight: neither RWKV-4, RWKV-7 nor SpikeGPT. It holds "):
        imported(saved(tmp_path, values))


@pytest.mark.parametrize("is_zip", [True, False])
def test_no_damage_of_a_pickle_is_more_than_an_error(is_zip, tmp_path):
    torch.save(WEIGHTS, tmp_path / "whole.pth", _use_new_zipfile_serialization=is_zip)
    whole, random, path = (tmp_path / "whole.pth").read_bytes(), np.random.default_rng(0), tmp_path / "rwkv.pth"
    for _ in range(150):
        broken = bytearray(whole[: random.integers(len(whole)) if random.random() < 0.3 else None])
        for place in random.integers(min(len(broken), 3000) or 1, size=3) if broken else ():
            broken[place] = random.integers(256)
        path.write_bytes(broken)
        try:
            open_weights(path)
        except SpikegptError as error:
            assert "\n" not in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a POSIX thing")
def test_what_is_neither_file_nor_folder_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "rwkv.pth")
    with pytest.raises(SpikegptError, match="neither a file nor a folder"):
        imported(tmp_path / "rwkv.pth")


@pytest.mark.parametrize("is_named", [True, False])
def test_the_vocabulary_of_rwkv_world_is_the_models_tokenizer(is_named, tmp_path):
    tokens = {bytes([byte]): byte + 1 for byte in range(254)} | {b"ab": 255}
    path = write_vocabulary(tmp_path / ("tokens" if is_named else "rwkv_vocab_v20230424.txt"), tokens)
    imported(saved(tmp_path, WEIGHTS), tokenizer=path if is_named else None)
    assert load_model(tmp_path / "out")[1].encode(b"abb").tolist() == [255, 99]


def test_the_vocabulary_of_rwkv_world_is_fetched_by_its_name(tmp_path, monkeypatch):
    here, asked = write_vocabulary(tmp_path / "v.txt", {b"a": 1}), []
    monkeypatch.setattr("spikegpt.interop.weights.fetch", lambda source: asked.append(source) or here)
    imported(saved(tmp_path, WEIGHTS), tokenizer=Path("fla-hub/model/rwkv_vocab_v20230424.txt"))
    assert asked == [Path("fla-hub/model/rwkv_vocab_v20230424.txt")]


def test_a_configuration_that_names_no_model_type_does_not_tell_the_block(tmp_path):
    source = folder(tmp_path, {"model.safetensors": THEIRS}, {"hidden_size": 8}).rename(tmp_path / "weights")
    with pytest.raises(SpikegptError, match="say --spiking output or --spiking none"):
        imported(source)
