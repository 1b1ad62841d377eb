"""RWKV-5 and -6 in the files of others: folders as on the hub, those of flash-linear-attention, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.interop.weights import export_weights, import_weights
from spikegpt.model.network import SpikeGPT

C, HEAD = 128, 64
RANKS = {"rwkv5": (), "rwkv6": (3, 7)}
CONFIGS = {
    mixer: ModelConfig(n_layer=2, n_embd=C, mixer=mixer, spiking="none", head_size=HEAD, lora_ranks=ranks)
    for mixer, ranks in RANKS.items()
}
MIXERS = pytest.mark.parametrize("mixer", list(RANKS))


def weights_of(mixer: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in SpikeGPT(CONFIGS[mixer], init=False).state_dict().items()}
    return {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def logits_of(folder: Path) -> torch.Tensor:
    return load_model(folder)[0](torch.arange(40)[None]).logits


@pytest.fixture
def ours(tmp_path):
    """Returns a function that writes the folder of a model, as a run is."""

    def write(mixer: str) -> Path:
        model = SpikeGPT(CONFIGS[mixer], init=False)
        model.load_state_dict(weights_of(mixer))
        (tmp_path / "ours").mkdir()
        save_model(tmp_path / "ours", model, ByteTokenizer())
        return tmp_path / "ours"

    return write


def give(folder: Path, weights: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@MIXERS
def test_a_folder_as_on_the_hub_goes_out_and_in_with_equal_tensors(mixer, ours, tmp_path):
    run = ours(mixer)
    export_weights(run, tmp_path / "theirs", "huggingface")
    said = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert (said["model_type"], said["head_size"], said["head_size_divisor"]) == (mixer, 64, 8)
    assert said["architectures"] == [f"R{mixer[1:]}ForCausalLM"] and said["intermediate_size"] == 448
    names = load_file(tmp_path / "theirs" / "model.safetensors").keys()
    mine = {"rwkv5": "attention.time_mix_gate", "rwkv6": "attention.time_maa_w2"}[mixer]
    assert {f"rwkv.blocks.1.{mine}", "rwkv.blocks.0.pre_ln.weight", "head.weight"} <= names
    config = import_weights(tmp_path / "theirs", tmp_path / "back")
    assert (config.mixer, config.head_size, config.lora_ranks) == (mixer, HEAD, RANKS[mixer])
    found, wanted = load_file(tmp_path / "back" / "model.safetensors"), weights_of(mixer)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@MIXERS
def test_an_official_file_comes_back_as_it_was(mixer, ours, tmp_path):
    export_weights(ours(mixer), tmp_path / "file.pth", "pth")
    found, wanted = torch.load(tmp_path / "file.pth", weights_only=True), weights_of(mixer)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_bonus_may_be_called_as_in_rwkv4(ours, tmp_path):
    weights = {name.replace("time_faaaa", "time_first"): tensor for name, tensor in weights_of("rwkv5").items()}
    import_weights(give(tmp_path / "theirs", weights), tmp_path / "out", ctx_len=16)
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(ours("rwkv5")))


def fla_of(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """What flash-linear-attention's utils/convert_from_rwkv6.py makes of an official tensor but the shares, anew."""
    ends = {"emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight"}
    ends |= {f"ln_out.{part}": f"model.norm.{part}" for part in ("weight", "bias")}
    if name in ends:
        return {ends[name]: tensor}
    _, layer, half, rest = name.split(".", 3)
    start = f"model.layers.{layer}"
    norms = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
    if half in norms:
        return {f"{start}.{norms[half]}.{rest}": tensor}
    if half == "ffn":
        mine = {"key.weight": "key.linear.weight", "receptance.weight": "receptance.linear.weight"}
        mine |= {"value.weight": "value.weight", "time_maa_k": "key.mu", "time_maa_r": "receptance.mu"}
        return {f"{start}.ffn.{mine[rest]}": tensor.flatten() if "time" in rest else tensor}
    if rest == "time_maa_w1":
        w, k, v, r, g = tensor.unflatten(1, (5, -1)).unbind(1)
        return {f"{start}.attn.x_proj.0.linear.weight": torch.cat([r, w, k, v, g], dim=1).t()}
    if rest == "time_maa_w2":
        w, k, v, r, g = tensor
        return {f"{start}.attn.x_proj.2.weight": torch.cat([r, w, k, v, g]).t()}
    linear = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj"}
    mine = {f"{ours}.weight": f"{theirs}.linear.weight" for ours, theirs in linear.items()}
    mine |= {"output.weight": "o_proj.weight", "time_faaaa": "bonus", "time_maa_x": "x_proj.0.mu"}
    mine |= {f"ln_x.{part}": f"g_norm.{part}" for part in ("weight", "bias")}
    mine |= {"time_decay": "w_proj.linear.lora.2.bias"}
    mine |= {f"time_decay_w{side}": f"w_proj.linear.lora.{2 * side - 2}.weight" for side in (1, 2)}
    if rest.startswith("time_maa_") and rest != "time_maa_x":
        return {}
    is_row = rest in ("time_maa_x", "time_decay")
    turned = tensor.t() if "time_decay_w" in rest else tensor
    return {f"{start}.attn.{mine[rest]}": turned.flatten() if is_row else turned}


def fla_weights() -> dict[str, torch.Tensor]:
    ours = weights_of("rwkv6")
    theirs = {name: t for official, tensor in ours.items() for name, t in fla_of(official, tensor).items()}
    for layer in range(2):
        shares = [ours[f"blocks.{layer}.att.time_maa_{letter}"].flatten() for letter in "rwkvg"]
        theirs[f"model.layers.{layer}.attn.x_bias"] = torch.stack(shares)
    return theirs


def test_a_folder_of_fla_has_the_logits_of_the_official_file(ours, tmp_path):
    said = {"model_type": "rwkv6", "hidden_size": C, "num_hidden_layers": 2, "vocab_size": 256, "norm_eps": 1e-5}
    config = import_weights(give(tmp_path / "theirs", fla_weights(), **said), tmp_path / "out")
    assert (config.mixer, config.spiking, config.lora_ranks) == ("rwkv6", "none", (3, 7))
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(ours("rwkv6")))


SHORT = {f"blocks.{n}.att.time_decay": torch.zeros(2) for n in (0, 1)}


def without(weights, *parts):
    return {name: tensor for name, tensor in weights.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("mixer", "change", "words"),
    [
        ("rwkv5", lambda w: without(w, "gate", "time_mix_g"), r"is RWKV-5.0: it has 'att.ln_x.weight', and no gate"),
        ("rwkv5", lambda w: w | SHORT, "is RWKV-5.1: it has one decay for each head. This package reads"),
        ("rwkv6", lambda w: w | {"blocks.0.att.gate_w1": torch.zeros(C, 64)}, 'is RWKV-6 "a"'),
        ("rwkv6", lambda w: w | {"blocks.0.att.time_state": torch.zeros(2, 64, 64)}, "with a tuned first state"),
        ("rwkv6", lambda w: w | {"blocks.1.att.time_mix_g": torch.zeros(C)}, "of RWKV-6 .* and of RWKV-5 "),
        ("rwkv6", lambda w: w | {"blocks.1.att.r_k": torch.zeros(2, 64)}, "of RWKV-7 .* and of RWKV-6 "),
        ("rwkv5", lambda w: w | {"blocks.1.att.time_faaaa": torch.zeros(3, 64)}, "do not make up the width 128"),
        ("rwkv6", lambda w: w | {"blocks.1.att.time_maa_w1": torch.zeros(C, 16)}, "not those of five mixes"),
        ("rwkv6", lambda w: without(w, "blocks.1.att.time_decay_w1"), "time_decay_w1 is missing, want a matrix"),
        (
            "rwkv5",
            lambda w: w | {"blocks.0.ffn.key.weight": torch.zeros(512, C)},
            r"is \(512, 128\), want \(448, 128\)",
        ),
    ],
)
def test_what_is_no_such_model_is_refused_in_one_line(mixer, change, words, tmp_path):
    folder = give(tmp_path / "theirs", change(weights_of(mixer)))
    with pytest.raises(SpikegptError, match=words) as refused:
        import_weights(folder, tmp_path / "out")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"model_type": "rwkv6"}, "says model_type 'rwkv6', its tensors are of RWKV-5"),
        ({"model_type": "rwkv5", "head_size": 32}, "says head_size 32; RWKV-5 here has 64"),
        ({"model_type": "rwkv5", "head_size_divisor": 4}, "says head_size_divisor 4; RWKV-5 here has 8"),
        ({"model_type": "rwkv5", "intermediate_size": 512}, "says intermediate_size 512; RWKV-5 here has 448"),
    ],
)
def test_a_config_of_another_model_is_refused(said, words, tmp_path):
    with pytest.raises(SpikegptError, match=words):
        import_weights(give(tmp_path / "theirs", weights_of("rwkv5"), **said), tmp_path / "out")
