"""Weights in the files of others: the author's SpikeGPT, official RWKV-4, Hugging Face's RwkvForCausalLM; our own.

Import makes a folder that every verb takes as a run; export writes the same tensors back under the names of the other
side. Loading never runs code. Tensors are mapped or read one at a time, so that no file is in memory twice.
What others call their tensors: names.py.
"""

import dataclasses
import json
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.files import FORMAT, read_json, write_manifest
from ..checkpoint.run import find_model
from ..checkpoint.safetensors_file import write_safetensors
from ..checkpoint.weights import TensorFile, load_model
from ..common.errors import SpikegptError
from ..common.files import atomic_path, write_atomically
from ..common.hub import fetch, is_hub_name
from ..config import ModelConfig, Spiking
from ..data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from .names import empty_model, huggingface_config, huggingface_name, infer_config, official_names

LAYOUTS = ("pth", "huggingface", "auto")


def import_weights(
    source: Path,
    out: Path,
    *,
    spiking: Spiking | None = None,
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
    write_manifest(out)
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
    if layout == "auto":
        from .huggingface import from_run

        for part in from_run(run):
            part.save_pretrained(target)
        for path in target.glob("*.safetensors"):
            # the library of these lets only the owner read
            shutil.copymode(target / "config.json", path)
        return
    model, tokenizer = load_model(run)
    config = model.config
    if config.mixer != "rwkv4":
        raise SpikegptError(
            f"layout {layout!r} names RWKV-4's tensors, the model's mixer is {config.mixer!r}; "
            "export it with --layout auto"
        )
    if config.spiking == "input":
        raise SpikegptError(
            "a spike-driven model has neurons with parameters, which no other library's layout names; "
            "export it with --layout auto"
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
    write_atomically(target / "config.json", json.dumps(huggingface_config(config), indent=1))
    tokenizer.save(target / "tokenizer.json")
    write_safetensors(target / "model.safetensors", shapes, stream)


def open_weights(source: Path) -> Mapping[str, Tensor]:
    """Return name -> tensor of a file or folder, under the names there; nothing is read before it is asked for.

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
            return _Joined([TensorFile(path) if index.startswith("model") else _open_pickle(path) for path in files])
    if (source / "model.safetensors").exists():
        return TensorFile(source / "model.safetensors")
    if (source / "pytorch_model.bin").exists():
        return _open_pickle(source / "pytorch_model.bin")
    return TensorFile(find_model(source) / "model.safetensors")


class _Joined(Mapping):
    """The tensors of several files together."""

    def __init__(self, files: list[Mapping[str, Tensor]]):
        self._file_of = {name: file for file in files for name in file}

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _open_pickle(path: Path) -> dict[str, Tensor]:
    is_mappable = zipfile.is_zipfile(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise SpikegptError(
            f"{path} holds more than tensors, and opening it could run code: refused ({reason}). Ask its author for a "
            "file of tensors alone, or convert it to safetensors on a machine where that code may run"
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


def _find_tokenizer(source: Path, given: Path | None, vocab_size: int) -> Tokenizer:
    folder = source if source.is_dir() else source.parent
    beside = [path for path in (folder / "tokenizer.json", folder / "20B_tokenizer.json") if path.exists()]
    if given is not None or beside:
        tokenizer = load_tokenizer(given or beside[0])
        # released models have a few rows more than tokens
        if tokenizer.vocab_size > vocab_size:
            raise SpikegptError(
                f"{given or beside[0]} has {tokenizer.vocab_size} tokens, the model {vocab_size}: "
                "it is not this model's tokenizer"
            )
        return tokenizer
    if vocab_size == 256:
        return ByteTokenizer()
    raise SpikegptError(
        f"the vocabulary has {vocab_size} tokens and no tokenizer.json lies beside {source}; "
        "give one with --tokenizer FILE"
    )
