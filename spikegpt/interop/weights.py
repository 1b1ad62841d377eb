"""Weights in the files of others: the author's SpikeGPT and official RWKV-4 `.pth`, Hugging Face's RwkvForCausalLM
folders, our own.

Import makes a folder that every verb takes as a run; export writes the same tensors back under the names of the other
side. Loading never runs code. Tensors are mapped or read one at a time, so that no file is in memory twice.
Key names: RWKV-LM's RWKV-v4neo/src/model.py; transformers' convert_rwkv_checkpoint_to_hf.py.
"""

import dataclasses
import json
import pickle
import re
import zipfile
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.run import FORMAT, TensorFile, find_model, load_model, read_json
from ..checkpoint.safetensors_file import write_safetensors
from ..common.errors import SpikegptError
from ..common.files import atomic_path, write_atomically
from ..common.hub import fetch, is_hub_name
from ..config import PRESETS, ModelConfig, model_preset
from ..data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from ..model.network import SpikeGPT

LAYOUTS = ("pth", "huggingface", "auto")
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
PUBLISHED = {(18, 768, 50277): "output"} | {(*size, 50277): "none" for size in RWKV4_SIZES}


def import_weights(
    source: Path,
    out: Path,
    *,
    spiking: str | None = None,
    tokenizer: Path | None = None,
    ctx_len: int = 1024,
    binary_embedding: bool = True,
    rescale_every: int = 0,
) -> ModelConfig:
    """Write the model in `source` into the folder `out`, in our format, and return its configuration.

    Args:
        source: a `.pth` or `.safetensors` file, a folder of Hugging Face's or ours, or OWNER/NAME or OWNER/NAME/FILE on
            the hub.
        spiking: "output" (the published block) or "none" (dense RWKV-4), whose tensors are alike; None recognises it.
        tokenizer: a `tokenizers` JSON file, or OWNER/NAME on the hub, whose tokenizer.json it is; None takes the one
            beside the weights, or bytes for a vocabulary of 256.
        ctx_len: tokens per window in evaluation; the weights do not say.
        binary_embedding, rescale_every: see ModelConfig; False and 6 are what the published inference script does.

    Raises:
        SpikegptError: it cannot be read safely, is of another family, or does not fit; each tensor at fault is named.
    """
    source, out = Path(source), Path(out)
    if out.exists() and any(out.iterdir()):
        raise SpikegptError(f"{out} is not empty; give another --out")
    if is_hub_name(source):
        source = fetch(source)
    if tokenizer is not None and is_hub_name(tokenizer):
        tokenizer = fetch(tokenizer if tokenizer.suffix == ".json" else tokenizer / "tokenizer.json")
    with_names = official_names(open_weights(source))
    config = infer_config(with_names, source, spiking, ctx_len)
    config = dataclasses.replace(config, binary_embedding=binary_embedding, rescale_every=rescale_every)
    chosen = _find_tokenizer(source, tokenizer, config.vocab_size)
    out.mkdir(parents=True, exist_ok=True)
    chosen.save(out / "tokenizer.json")
    write_atomically(out / "config.json", json.dumps({"format": FORMAT, "model": config.to_dict()}, indent=1))
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    tensors = ((name, with_names[name].reshape(shape).float()) for name, shape in shapes.items())
    # last, because a folder with weights is a model
    write_safetensors(out / "model.safetensors", shapes, tensors)
    return config


def export_weights(run: Path, target: Path, layout: str) -> None:
    """Write the model of a run, checkpoint or imported folder in the `layout` of the other side.

    Args:
        layout: "pth", a file of torch.save with the official names; "huggingface", a folder of RwkvForCausalLM's;
            "auto", a folder for AutoModelForCausalLM after `import spikegpt.huggingface`, of any block.

    Raises:
        SpikegptError: the model has tensors that the layout does not know, or the target cannot be written.
    """
    if layout not in LAYOUTS:
        raise SpikegptError(f"layout {layout!r} is unknown; known: {', '.join(LAYOUTS)}")
    folder = find_model(Path(run))
    if layout == "auto":
        from .huggingface import from_run

        for part in from_run(folder):
            part.save_pretrained(target)
        return
    model, tokenizer = load_model(folder)
    config = model.config
    if config.mixer != "rwkv4":
        raise SpikegptError(
            f"layout {layout!r} names RWKV-4's tensors, the model's mixer is {config.mixer!r}; export it with --layout "
            "auto"
        )
    if config.spiking == "input":
        raise SpikegptError(
            "a spike-driven model has neurons with parameters, which no other library's layout names; export it with "
            "--layout auto"
        )
    weights = model.state_dict()
    if layout == "pth":
        with atomic_path(target) as temporary:
            torch.save(weights, temporary)
        return
    target.mkdir(parents=True, exist_ok=True)
    names = {huggingface_name(name): name for name in weights}
    shapes = {name: tuple(weights[ours].shape) for name, ours in names.items()}
    stream = ((name, weights[ours]) for name, ours in names.items())
    write_atomically(target / "config.json", json.dumps(_huggingface_config(config), indent=1))
    tokenizer.save(target / "tokenizer.json")
    write_safetensors(target / "model.safetensors", shapes, stream)


# --- reading -------------------------------------------------------------------------------------------------------


def open_weights(source: Path) -> Mapping[str, Tensor]:
    """Return name -> tensor of a file or folder, under the names that stand there; nothing is read before it is asked
    for.

    Raises:
        SpikegptError: it is missing, broken, holds something else than tensors, or would run code.
    """
    if not source.exists():
        raise SpikegptError(f"{source} does not exist; give a .pth or .safetensors file, or the folder of a model")
    if source.is_file():
        return TensorFile(source) if source.suffix == ".safetensors" else _open_pickle(source)
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (source / index).exists():
            files = sorted({source / name for name in read_json(source / index)["weight_map"].values()})
            missing = [str(path) for path in files if not path.exists()]
            if missing:
                raise SpikegptError(f"{source / index} names files that are missing: {', '.join(missing)}")
            return ChainMap(*(TensorFile(path) if index.startswith("model") else _open_pickle(path) for path in files))
    if (source / "model.safetensors").exists():
        return TensorFile(source / "model.safetensors")
    if (source / "pytorch_model.bin").exists():
        return _open_pickle(source / "pytorch_model.bin")
    return TensorFile(find_model(source) / "model.safetensors")


def _open_pickle(path: Path) -> dict[str, Tensor]:
    is_mappable = zipfile.is_zipfile(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise SpikegptError(
            f"{path} holds more than tensors, and opening it could run code: refused ({reason}). Ask its author for "
            f"a file of tensors alone, "
            "or convert it to safetensors on a machine where that code may run"
        ) from None
    except (EOFError, RuntimeError, ValueError, OSError) as error:
        raise SpikegptError(f"{path} is not a whole file of torch.save ({error}); get it again") from None
    # some trainers put the weights beside other things
    for key in ("state_dict", "model", "module"):
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
    if not isinstance(values, dict) or not values or not all(isinstance(value, Tensor) for value in values.values()):
        raise SpikegptError(
            f"{path} does not hold names and tensors, but {type(values).__name__}; it is not the weights of a model"
        )
    return values


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


# --- recognising ---------------------------------------------------------------------------------------------------


def infer_config(weights: Mapping[str, Tensor], source: Path, spiking: str | None, ctx_len: int) -> ModelConfig:
    """Return the configuration of official tensors, after checking that each is there, has its shape, and none is left
    over.

    Raises:
        SpikegptError: see `import_weights`.
    """
    for part, family in OTHER_FAMILIES.items():
        if any(part in name for name in weights):
            raise SpikegptError(f"{source} is {family}: it has {part!r}. This package reads RWKV-4 and SpikeGPT")
    layers = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))}
    if "emb.weight" not in weights or not layers:
        raise SpikegptError(
            f"{source} has no emb.weight and blocks.0.*: neither RWKV-4 nor SpikeGPT. It begins with "
            f"{_some(list(weights))}"
        )
    vocab_size, n_embd = weights["emb.weight"].shape
    n_layer = max(layers) + 1
    known = _recognise_block(source, (n_layer, n_embd, vocab_size))
    block = spiking or known
    if block is None:
        raise SpikegptError(
            f"{source}: {n_layer} layers, width {n_embd}, vocabulary {vocab_size}. The published SpikeGPT and dense "
            f"RWKV-4 have the same "
            "tensors, and neither size nor name tells which this is: say --spiking output or --spiking none"
        )
    config = ModelConfig(n_layer=n_layer, n_embd=n_embd, vocab_size=vocab_size, ctx_len=ctx_len, spiking=block)
    _check_tensors(weights, config, source)
    return config


def _recognise_block(source: Path, sizes: tuple[int, int, int]) -> str | None:
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


def _huggingface_config(config: ModelConfig) -> dict:
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


def _find_tokenizer(source: Path, given: Path | None, vocab_size: int) -> Tokenizer:
    folder = source if source.is_dir() else source.parent
    beside = [path for path in (folder / "tokenizer.json", folder / "20B_tokenizer.json") if path.exists()]
    if given is not None or beside:
        tokenizer = load_tokenizer(given or beside[0])
        # released models have a few rows more than tokens
        if tokenizer.vocab_size > vocab_size:
            raise SpikegptError(
                f"{given or beside[0]} has {tokenizer.vocab_size} tokens, the model {vocab_size}: it is not this "
                f"model's tokenizer"
            )
        return tokenizer
    if vocab_size == 256:
        return ByteTokenizer()
    raise SpikegptError(
        f"the vocabulary has {vocab_size} tokens and no tokenizer.json lies beside {source}; give one with "
        f"--tokenizer FILE"
    )
