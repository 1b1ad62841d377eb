"""RWKV-7 in the files of others: the folders of flash-linear-attention, and official files with what nothing reads."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from world import vocabulary, write_vocabulary

from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.interop.names import UNREAD, fla_tensors
from spikegpt.interop.weights import export_weights, import_weights
from spikegpt.model.network import SpikeGPT

CONFIG = ModelConfig(n_layer=2, n_embd=128, mixer="rwkv7", spiking="none", head_size=64, lora_ranks=(7, 5, 3, 11))
THEIR_CONFIG = {"model_type": "rwkv7", "hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 256, "head_dim": 64}


def random_weights(config: ModelConfig = CONFIG) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in SpikeGPT(config, init=False).state_dict().items()}
    return {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


WEIGHTS = random_weights()


def logits_of(folder: Path) -> torch.Tensor:
    return load_model(folder)[0](torch.arange(40)[None]).logits


def converted(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """What flash-linear-attention's utils/convert_from_rwkv7.py makes of an official tensor, written anew."""
    ends = {"emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight"}
    ends |= {f"ln_out.{part}": f"model.norm.{part}" for part in ("weight", "bias")}
    if name in ends:
        return ends[name], tensor
    _, layer, half, *rest = name.split(".")
    if half == "att" and (pair := re.fullmatch("([wvag])([012])", rest[0])):
        part = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[pair[2]]
        rest, tensor = [f"{pair[1]}_lora.lora.{part}"], tensor.t() if pair[2] != "0" else tensor
    elif half == "att":
        linear = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
        rest[0] = linear.get(rest[0], rest[0])
    half = {"att": "attn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}.get(half, half)
    # the shares of the time mix alone keep (1, 1, C)
    shape = tensor.shape if "x_" in rest[0] and half == "attn" else [side for side in tensor.shape if side != 1]
    return ".".join(["model.layers", layer, half, *rest]), tensor.reshape(shape)


THEIRS = dict(converted(name, tensor) for name, tensor in WEIGHTS.items() if name not in UNREAD)


@pytest.fixture
def ours(tmp_path):
    """The folder of the model, as a run is."""
    (tmp_path / "ours").mkdir()
    model = SpikeGPT(CONFIG, init=False)
    model.load_state_dict(WEIGHTS)
    save_model(tmp_path / "ours", model, ByteTokenizer())
    return tmp_path / "ours"


@pytest.fixture
def give(tmp_path):
    """Returns a function that writes a folder as flash-linear-attention does."""

    def write(change=lambda weights: weights, **config) -> Path:
        folder = tmp_path / "theirs"
        folder.mkdir()
        save_file({name: t.contiguous() for name, t in change(dict(THEIRS)).items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(THEIR_CONFIG | config))
        return folder

    return write


def test_the_names_and_shapes_are_those_of_the_converter():
    found = fla_tensors(WEIGHTS)
    assert found.keys() == THEIRS.keys()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in THEIRS.items()}
    assert all(torch.equal(found[name], THEIRS[name]) for name in found)
    # by hand, one of each kind
    assert found["model.layers.1.attn.w_lora.lora.0.weight"].shape == (7, 128)
    assert found["model.layers.1.attn.v_lora.lora.2.weight"].shape == (128, 3)
    assert found["model.layers.0.attn.a_lora.lora.2.bias"].shape == (128,)
    assert found["model.layers.0.attn.x_r"].shape == (1, 1, 128) and found["model.layers.0.ffn.x_k"].shape == (128,)
    assert "model.layers.0.ffn.key.weight" in found and "model.layers.0.attn.v_lora.lora.2.bias" not in found


@pytest.mark.parametrize("kind", ["rwkv7", "rwkv7_fla"])
def test_a_folder_has_the_logits_of_the_official_file(kind, give, ours, tmp_path):
    config = import_weights(give(model_type=kind, norm_eps=1e-5, hidden_act="sqrelu"), tmp_path / "out")
    assert (config.mixer, config.spiking, config.head_size, config.lora_ranks) == ("rwkv7", "none", 64, (7, 5, 3, 11))
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(ours))


def test_an_export_is_imported_with_equal_tensors(ours, tmp_path):
    export_weights(ours, tmp_path / "theirs", "huggingface")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["v_low_rank_dim"] == 3
    import_weights(tmp_path / "theirs", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS.keys() - {*UNREAD})
    # there is no place for them in that layout, and so none in a file that is made of it
    export_weights(tmp_path / "out", tmp_path / "back.pth", "pth")
    assert torch.load(tmp_path / "back.pth", weights_only=True).keys() == WEIGHTS.keys() - {*UNREAD}


def test_first_folders_have_six_shares_in_one_tensor(give, ours, tmp_path):
    def as_then(weights):
        for layer in range(2):
            shares = [weights.pop(f"model.layers.{layer}.attn.x_{letter}").flatten() for letter in "rwkvag"]
            weights[f"model.layers.{layer}.attn.x_x"] = torch.stack(shares)
        return weights

    import_weights(give(as_then), tmp_path / "out")
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(ours))


def test_the_folder_of_a_model_of_the_world(give, tmp_path):
    tokens = {token: id for token, id in vocabulary().items() if id < 256 and token != b"\xff"}
    write_vocabulary(give() / "rwkv_vocab_v20230424.txt", tokens)
    import_weights(tmp_path / "theirs", tmp_path / "out")
    assert load_model(tmp_path / "out")[1].vocabulary == tokens


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "rwkv"}, "model_type 'rwkv', its tensors are of RWKV-7"),
        ({"model_type": "rwkv6"}, "model_type 'rwkv6', its tensors are of RWKV-7"),
        ({"model_type": "mamba"}, "model_type 'mamba'. This package reads"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06; RWKV-7 here has 1e-05"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'; RWKV-7 here has sqrelu"),
        ({"attn": {"layers": [1]}}, "attn {'layers': .1.}; RWKV-7 here has None"),
        ({"head_dim": 32}, "head_dim 32; RWKV-7 here has 64"),
        ({"intermediate_size": 100}, "intermediate_size 100; RWKV-7 here has 512"),
        ({"num_hidden_layers": 3}, "n_layer 3, its tensors are of n_layer 2"),
    ],
)
def test_what_the_configuration_says_otherwise_is_refused(config, words, give, tmp_path):
    with pytest.raises(SpikegptError, match=words):
        import_weights(give(**config), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w | {"emb.weight": WEIGHTS["emb.weight"].clone()}, "are both emb.weight"),
        (lambda w: w | {"model.layers.0.attn.x_x": torch.zeros(5, 128)}, r"x_x is \(5, 128\), want \(6, n_embd\)"),
        (lambda w: w | {"model.layers.0.attn.x_x": torch.zeros(6, 128)}, "are both blocks.0.att.x_"),
        (lambda w: w | {"blocks.0.att.time_maa_x": torch.zeros(1, 1, 128)}, "of RWKV-7 .* and of RWKV-6"),
        (lambda w: w | {"blocks.0.att.gate.weight": torch.zeros(1)}, "of RWKV-7 .* and of RWKV-5"),
        (
            lambda w: w | {"model.layers.1.attn.r_k": torch.zeros(3, 40)},
            "do not make up the width 128",
        ),
        (
            lambda w: w | {"model.layers.0.attn.r_k": torch.zeros(3, 64)},
            r"r_k is \(3, 64\), want \(2, 64\)",
        ),
        (lambda w: w | {"model.layers.1.attn.w_lora.lora.2.weight": torch.zeros(128, 8)}, r"w2 is \(8, 128\), want"),
        (lambda w: w | {"model.layers.0.attn.g_lora.lora.0.weight": torch.zeros(9, 128)}, r"g1 is \(128, 9\), want"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, words, give, tmp_path):
    with pytest.raises(SpikegptError, match=words) as error:
        import_weights(give(change), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_other_heads_have_another_norm_there(tmp_path):
    config = ModelConfig(n_layer=1, n_embd=64, mixer="rwkv7", spiking="none", head_size=32)
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", SpikeGPT(config), ByteTokenizer())
    with pytest.raises(SpikegptError, match=r"heads of 32, .*0.00032 in flash.* 0.00064 here: .*--layout pth"):
        export_weights(tmp_path / "ours", tmp_path / "theirs", "huggingface")
    assert not (tmp_path / "theirs").exists()
    weights = fla_tensors(SpikeGPT(config).state_dict())
    give_folder = tmp_path / "given"
    give_folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, give_folder / "model.safetensors")
    (give_folder / "config.json").write_text('{"model_type": "rwkv7"}')
    with pytest.raises(SpikegptError, match=r"heads of 32, .*take the official file"):
        import_weights(give_folder, tmp_path / "out")


@pytest.mark.parametrize("unread", ["absent", "zeros", "numbers"])
def test_what_is_unread_comes_back_as_it_was(unread, tmp_path):
    weights = {name: tensor for name, tensor in WEIGHTS.items() if unread != "absent" or name not in UNREAD}
    if unread == "zeros":
        weights |= {name: torch.zeros_like(weights[name]) for name in UNREAD}
    torch.save(weights, tmp_path / "given.pth")
    import_weights(tmp_path / "given.pth", tmp_path / "out")
    export_weights(tmp_path / "out", tmp_path / "back.pth", "pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in back)


def test_a_part_of_what_is_unread_is_too_little(tmp_path):
    torch.save({name: tensor for name, tensor in WEIGHTS.items() if name != UNREAD[0]}, tmp_path / "given.pth")
    with pytest.raises(SpikegptError, match=r"missing: blocks.0.att.v0"):
        import_weights(tmp_path / "given.pth", tmp_path / "out")


@pytest.mark.parametrize("side", [lambda shape: (5, 128 // 4), lambda shape: (2, 60), lambda shape: (0, 64)])
def test_heads_that_do_not_divide_the_width_are_refused(side, tmp_path):
    weights = {n: torch.zeros(side(t.shape)) if n.endswith("r_k") else t for n, t in WEIGHTS.items()}
    torch.save(weights, tmp_path / "given.pth")
    with pytest.raises(SpikegptError, match=r"blocks.1.att.r_k is \(") as error:
        import_weights(tmp_path / "given.pth", tmp_path / "out")
    assert "\n" not in str(error.value)
