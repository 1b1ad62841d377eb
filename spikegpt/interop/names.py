"""The layouts of others: what they call their tensors, and which model a set of tensors is.

Key names: RWKV-LM's RWKV-v4neo/src/model.py; transformers' convert_rwkv_checkpoint_to_hf.py.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.files import read_json
from ..common.errors import SpikegptError
from ..config import PRESETS, ModelConfig, Spiking, model_preset
from ..model.network import SpikeGPT

# what training frameworks put before every name
PREFIXES = ("_forward_module.", "module.", "_orig_mod.")
# Hugging Face's part of a name -> the official one; in this order
HUGGINGFACE = {
    "rwkv.embeddings.": "emb.",
    "rwkv.blocks.": "blocks.",
    "rwkv.ln_out.": "ln_out.",
    ".pre_ln.": ".ln0.",
    ".attention.": ".att.",
    ".feed_forward.": ".ffn.",
    ".time_mix_key": ".time_mix_k",
    ".time_mix_value": ".time_mix_v",
    ".time_mix_receptance": ".time_mix_r",
}
# tensors that only other generations have
OTHER_FAMILIES = {
    "att.x_r": "RWKV-7",
    "att.time_maa_x": "RWKV-6",
    "att.ln_x.weight": "RWKV-5",
    "att.gate.weight": "RWKV-5",
    "tiny_att": 'RWKV-4 "a" (tiny attention)',
}
# layers, width and vocabulary that only one of the two blocks was published with
RWKV4_SIZES = ((12, 768), (24, 1024), (24, 2048), (32, 2560), (32, 4096), (40, 5120))
PUBLISHED: dict[tuple[int, int, int], Spiking] = {(18, 768, 50277): "output"}
PUBLISHED |= {(*size, 50277): "none" for size in RWKV4_SIZES}


class _Renamed(Mapping):
    """The same tensors under other names."""

    def __init__(self, weights: Mapping[str, Tensor], original: dict[str, str]):
        self._weights, self._original = weights, original

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._original[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._original)

    def __len__(self) -> int:
        return len(self._original)


def official_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the same tensors under RWKV-4's official names, which are ours."""
    return _Renamed(weights, {official_name(name): name for name in weights})


def official_name(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for theirs, ours in HUGGINGFACE.items():
        name = name.replace(theirs, ours)
    return name


def huggingface_name(name: str) -> str:
    for theirs, ours in reversed(HUGGINGFACE.items()):
        # what has no point before it stands at the front
        if ours in name and (not theirs.startswith("rwkv.") or name.startswith(ours)):
            name = name.replace(ours, theirs)
    return name


def infer_config(weights: Mapping[str, Tensor], source: Path, spiking: Spiking | None, ctx_len: int) -> ModelConfig:
    """Return the configuration of official tensors, each checked to be there and of its shape, with none left over.

    Raises:
        SpikegptError: see `import_weights`.
    """
    for part, family in OTHER_FAMILIES.items():
        if any(part in name for name in weights):
            raise SpikegptError(f"{source} is {family}: it has {part!r}. This package reads RWKV-4 and SpikeGPT")
    layers = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))}
    if "emb.weight" not in weights or not layers:
        raise SpikegptError(
            f"{source} has no emb.weight and blocks.0.*: neither RWKV-4 nor SpikeGPT. "
            f"It begins with {_some(list(weights))}"
        )
    vocab_size, n_embd = weights["emb.weight"].shape
    n_layer = max(layers) + 1
    known = _recognise_block(source, (n_layer, n_embd, vocab_size))
    block = spiking or known
    if block is None:
        raise SpikegptError(
            f"{source}: {n_layer} layers, width {n_embd}, vocabulary {vocab_size}. "
            "The published SpikeGPT and dense RWKV-4 have the same tensors, "
            "and neither size nor name tells which this is: say --spiking output or --spiking none"
        )
    config = ModelConfig(n_layer=n_layer, n_embd=n_embd, vocab_size=vocab_size, ctx_len=ctx_len, spiking=block)
    _check_tensors(weights, config, source)
    return config


def _recognise_block(source: Path, sizes: tuple[int, int, int]) -> Spiking | None:
    if (source / "config.json").exists():
        values = read_json(source / "config.json")
        if values.get("model_type") == "rwkv":
            return "none"
        if "model" in values:
            return values["model"].get("spiking")
    name = source.name.lower()
    # the name first: it is what the giver says
    if "spike" in name:
        return "output"
    if "rwkv" in name:
        return "none"
    return PUBLISHED.get(sizes)


def _check_tensors(weights: Mapping[str, Tensor], config: ModelConfig, source: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    faults = []
    missing, unexpected = sorted(wanted.keys() - set(weights)), sorted(set(weights) - wanted.keys())
    if missing:
        faults.append(f"missing: {', '.join(missing)}")
    if unexpected:
        faults.append(f"unexpected: {', '.join(unexpected)}")
    for name in wanted.keys() & set(weights):
        found = tuple(weights[name].shape)
        # saved with the sides of 1 or without: the same numbers
        if [side for side in found if side != 1] != [side for side in wanted[name] if side != 1]:
            faults.append(f"{name} is {found}, want {wanted[name]}")
    if faults:
        raise SpikegptError(
            f"{source} does not fit {config.n_layer} layers of width {config.n_embd} ({_nearest(config)}); "
            + "; ".join(faults)
        )


def _nearest(config: ModelConfig) -> str:
    """The preset that is nearest in layers and width, in words."""

    def distance(name: str) -> float:
        preset = model_preset(name)
        return abs(preset.n_layer - config.n_layer) + abs(preset.n_embd - config.n_embd) / 64

    nearest = min(PRESETS, key=distance)
    preset = model_preset(nearest)
    return (
        f"nearest preset: {nearest}, {preset.n_layer} layers of width {preset.n_embd}, vocabulary {preset.vocab_size}"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def empty_model(config: ModelConfig) -> SpikeGPT:
    """Return the model with shapes and no numbers."""
    with torch.device("meta"):
        return SpikeGPT(config, init=False)


def huggingface_config(config: ModelConfig) -> dict:
    """Return config.json of RwkvForCausalLM."""
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "vocab_size": config.vocab_size,
        "context_length": config.ctx_len,
        "hidden_size": config.n_embd,
        "attention_hidden_size": config.n_embd,
        "intermediate_size": config.n_ffn,
        "num_hidden_layers": config.n_layer,
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
