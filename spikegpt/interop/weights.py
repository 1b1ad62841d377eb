"""Weights in the files of others: the author's SpikeGPT, RWKV-4 to -7, official and Hugging Face's; our own.

Import makes a folder that every verb takes as a run; export writes the same tensors back under the names of the other
side. How their files are opened: opening.py; what they call their tensors: names.py; their config.json: configs.py.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..checkpoint.files import FORMAT, write_manifest
from ..checkpoint.run import find_model
from ..checkpoint.safetensors_file import write_safetensors
from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..common.files import atomic_path, write_atomically
from ..common.hub import fetch, is_hub_name
from ..config import ModelConfig, Spiking
from ..data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from .configs import check_model_type, config_beside, fla_config, has_tied_head, huggingface_config, make_config
from .names import (
    check_tensors,
    empty_model,
    fla_tensors,
    generation_of,
    huggingface_name,
    official_names,
    sizes_of,
    without_absent,
)
from .nir_file import is_nir, read_nir, write_nir
from .opening import find_weights, open_weights
from .tokenizer_files import read_tokenizer, rows_without_token, write_tokenizer

# RWKV World's vocabulary
WORLD = "rwkv_vocab_v*.txt"
# what is written is a file, or a folder
FILES, FOLDERS = ("pth", "nir"), ("huggingface", "auto")
LAYOUTS = (*FILES, *FOLDERS)
# mixer -> layouts that name its tensors
NAMED_IN = dict.fromkeys(("rwkv4", "rwkv5", "rwkv6", "rwkv7"), ("pth", "huggingface"))


def import_weights(
    source: Path,
    out: Path,
    *,
    spiking: Spiking | None = None,
    tokenizer: Path | None = None,
    ctx_len: int | None = None,
    binary_embedding: bool = True,
    rescale_every: int = 0,
) -> ModelConfig:
    """Write the model in `source` into the folder `out`, in our format, and return its configuration.

    Args:
        source: a `.pth` or `.safetensors` file, a folder of Hugging Face's or ours, or OWNER/NAME or OWNER/NAME/FILE on
            the hub.
        spiking: "output" (the published block) or "none" (dense RWKV-4), whose tensors are alike; None recognises it.
        tokenizer: a `tokenizers` JSON file, RWKV World's vocabulary, or either on the hub, OWNER/NAME/FILE (OWNER/NAME
            alone is its tokenizer.json); None takes the one beside the weights, or bytes for a vocabulary of 256.
        ctx_len: tokens per window in evaluation; None takes what config.json says, or 1024: the weights do not say.
        binary_embedding, rescale_every: see ModelConfig; False and 6 are what the published inference script does. The
            defaults leave to a model of ours what its own configuration says.

    Raises:
        SpikegptError: it cannot be read safely, is of another family, does not fit (the tensors at fault are named), or
            is not finite; or something stands at `out`.
    """
    source, out = Path(source), Path(out)
    check_free(out)
    if is_hub_name(source):
        source = fetch(source)
    if tokenizer is not None and is_hub_name(tokenizer):
        tokenizer = fetch(tokenizer if tokenizer.suffix in (".json", ".txt") else tokenizer / "tokenizer.json")
    if is_nir(source):
        with TemporaryDirectory() as scratch:
            model, own = read_nir(source, Path(scratch))
        if tokenizer is not None:
            own = read_tokenizer(tokenizer)
        _write_model(out, model.config, own, model.state_dict(), source)
        return model.config
    file = find_weights(source)
    said = config_beside(file, source)
    check_model_type(said, source)
    weights = official_names(open_weights(file), source, has_tied_head(said))
    sizes = sizes_of(weights, source)
    told, weights = generation_of(weights, sizes, source)
    config = make_config(said, sizes, told, source, file, spiking, ctx_len)
    config = dataclasses.replace(
        config,
        binary_embedding=config.binary_embedding and binary_embedding,
        rescale_every=rescale_every or config.rescale_every,
    )
    check_tensors(weights, config, source)
    _write_model(out, config, _find_tokenizer(file, tokenizer, config.vocab_size), weights, source)
    return config


def _write_model(
    out: Path, config: ModelConfig, tokenizer: Tokenizer, weights: Mapping[str, Tensor], source: Path
) -> None:
    """Write a folder that every verb takes; nothing is left of it if that fails."""
    is_new, is_done = not out.exists(), False
    out.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer.save(out / "tokenizer.json")
        write_atomically(out / "config.json", json.dumps({"format": FORMAT, "model": config.to_dict()}, indent=1))
        shapes = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
        # last, because a folder with weights is a model
        write_safetensors(out / "model.safetensors", shapes, _as_ours(weights, shapes, source))
        write_manifest(out)
        is_done = True
    finally:
        # what is half of a model would stand in the way of the next try
        if not is_done:
            for name in ("tokenizer.json", "config.json", "model.safetensors"):
                (out / name).unlink(missing_ok=True)
            if is_new:
                out.rmdir()


def _as_ours(
    weights: Mapping[str, Tensor], shapes: dict[str, tuple[int, ...]], source: Path
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, float32 tensor), one after the other; SpikegptError names the first that is not finite."""
    for name, shape in shapes.items():
        tensor = weights[name].reshape(shape).float()
        # not isfinite: the two extremes need no memory
        if not torch.stack(tensor.aminmax()).isfinite().all():
            raise SpikegptError(f"{source}: {name} holds NaN or infinite numbers, as float32; the model is broken")
        yield name, tensor


def check_free(target: Path, is_folder: bool = True) -> None:
    """Raise SpikegptError if something stands at `target` that writing would replace; an empty folder is nothing."""
    if is_folder and target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        what = "is not empty" if is_folder and target.is_dir() else "exists"
        raise SpikegptError(f"{target} {what}; give another name, or remove it")


def export_weights(run: Path, target: Path, layout: str) -> list[str]:
    """Write the model of a run, checkpoint or imported folder in the `layout` of the other side.

    Args:
        layout: "pth", a file of torch.save with the official names; "huggingface", a folder of RwkvForCausalLM's or of
            RWKV-5's and -6's on the hub, of RWKV-7 one of flash-linear-attention's RWKV7ForCausalLM; "auto", a folder
            for AutoModelForCausalLM after `import spikegpt.huggingface`, of any block; "nir", a graph for chips.

    Returns:
        Sentences that say what the layout does not hold as it is.

    Raises:
        SpikegptError: the model has tensors that the layout does not know, something stands at the target, or it cannot
            be written.
    """
    if layout not in LAYOUTS:
        raise SpikegptError(f"layout {layout!r} is unknown; known: {', '.join(LAYOUTS)}")
    run, target = Path(run), Path(target)
    check_free(target, is_folder=layout in FOLDERS)
    if layout == "nir":
        return write_nir(run, target)
    if layout == "auto":
        from .huggingface import from_run

        wrapped, own = from_run(run)[0], load_tokenizer(find_model(run) / "tokenizer.json")
        target.mkdir(parents=True, exist_ok=True)
        write_tokenizer(own, target, pads=True, rows=wrapped.config.vocab_size)
        write_atomically(target / "config.json", wrapped.config.to_json_string())
        write_atomically(target / "generation_config.json", wrapped.generation_config.to_json_string())
        _write_tensors(target, wrapped.state_dict())
        return []
    model, tokenizer = load_model(run)
    config = model.config
    if layout not in NAMED_IN.get(config.mixer, ()):
        raise SpikegptError(
            f"layout {layout!r} has no names for the tensors of mixer {config.mixer!r}; export it with --layout auto"
        )
    # what enters RWKV-4 as spikes at its outputs has the tensors of a dense one, and was published so
    if config.spiking == "input" or (config.mixer != "rwkv4" and config.spiking != "none"):
        raise SpikegptError(
            "a spike-driven model has neurons with parameters, which no other library's layout names; "
            "export it with --layout auto"
        )
    if config.perspectives > 1:
        raise SpikegptError(
            f"layout {layout!r} has one mix of tokens for each product, the model one for each of its "
            f"{config.perspectives} perspectives; export it with --layout auto"
        )
    weights = model.state_dict()
    if layout == "pth":
        target.parent.mkdir(parents=True, exist_ok=True)
        with _writing(target), atomic_path(target) as temporary:
            torch.save(without_absent(weights), temporary)
        return []
    is_rwkv7 = config.mixer == "rwkv7"
    described = fla_config(config) if is_rwkv7 else huggingface_config(config)
    target.mkdir(parents=True, exist_ok=True)
    special = write_tokenizer(tokenizer, target, pads=False, rows=config.vocab_size)
    write_atomically(target / "config.json", json.dumps(described | special, indent=1))
    # texts that have ended are filled with the token that ends them, as the library would do with a warning
    without = rows_without_token(tokenizer, config.vocab_size)
    generation = {**special, "pad_token_id": special["eos_token_id"], "suppress_tokens": without or None}
    write_atomically(target / "generation_config.json", json.dumps(generation, indent=1))
    renamed = {huggingface_name(name): tensor for name, tensor in weights.items()}
    _write_tensors(target, fla_tensors(weights) if is_rwkv7 else renamed)
    return []


def _write_tensors(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write model.safetensors; to be done last, because a folder with weights is a model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    write_safetensors(folder / "model.safetensors", shapes, weights.items())


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Within this block a full disk is a SpikegptError, in whatever words torch.save says so."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise SpikegptError(f"cannot write {target}: {reason}; is the disk full?") from None


def _find_tokenizer(weights: Path, given: Path | None, vocab_size: int) -> Tokenizer:
    folder = weights.parent
    named = (folder / "tokenizer.json", folder / "20B_tokenizer.json", *sorted(folder.glob(WORLD)))
    beside = [path for path in named if path.exists()]
    if given is not None or beside:
        tokenizer = read_tokenizer(given or beside[0])
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
        f"the vocabulary has {vocab_size} tokens and no tokenizer.json lies beside {weights}; "
        "give one with --tokenizer FILE"
    )
