"""Reading tensors back: a safetensors file, the model of a run, what training needs to go on.

Nothing here is a pickle; loading runs no code.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..common.devices import find_device
from ..common.errors import SpikegptError, Warn, warn_on_stderr
from ..common.files import to_path
from ..common.json_text import parse_json
from ..common.shards import fill
from ..config import ModelConfig
from ..data.tokenizers import Tokenizer, load_tokenizer
from ..model.mixers.contract import NeuronFactory
from ..model.network import SpikeGPT
from ..model.quantised import FORMATS, FULL, Quantised, unpack
from .files import LOW_BIT, MANIFEST, check_finite, check_format, read_json
from .run import locate, progress_of, read_model_config, read_steadily


class TensorFile(Mapping):
    """Name -> tensor of a safetensors file; each is read when asked for, and its part of the file let go with it.

    Matrices of a few bits, which the file holds as codes, come as the numbers that these stand for.

    Raises:
        SpikegptError: missing, truncated, or not safetensors; a pickle is named as such and never opened.
    """

    def __init__(self, path: Path):
        try:
            with safe_open(path, framework="pt") as file:
                self._names, metadata = set(file.keys()), file.metadata() or {}
        except FileNotFoundError:
            raise SpikegptError(f"{path} does not exist") from None
        except SafetensorError as error:
            start = path.open("rb").read(4)
            if start[:2] == b"PK" or start[:1] == b"\x80":
                raise SpikegptError(
                    f"{path} is a pickle, which could run code when loaded: refused; convert it to safetensors first"
                ) from None
            raise SpikegptError(f"{path} is not a whole safetensors file ({error}); use another checkpoint") from None
        self._path = path
        self._low_bit = _low_bit_matrices(metadata, path)
        for name in self._low_bit:
            for part in (f"{name}.codes", f"{name}.step"):
                if part not in self._names:
                    raise SpikegptError(f"{path}: tensor {part!r} is missing; use another checkpoint")
                self._names.remove(part)
            self._names.add(name)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._low_bit:
            return self._read(name)
        bits, *shape = self._low_bit[name]
        step = self._read(f"{name}.step")
        try:
            if step.shape != (shape[0],) or step.dtype != torch.float32:
                raise ValueError(f"{shape[0]} steps are float32 ({shape[0]},), got {step.dtype} {tuple(step.shape)}")
            return Quantised(unpack(self._read(f"{name}.codes"), (shape[0], shape[1]), bits), step).numbers()
        except ValueError as error:
            raise SpikegptError(f"{self._path}: {name!r}: {error}; use another checkpoint") from None

    def steps(self) -> dict[str, Tensor]:
        """Return matrix of a few bits -> its steps (out,)."""
        return {name: self._read(f"{name}.step") for name in self._low_bit}

    def _read(self, name: str) -> Tensor:
        # opened anew each time: a file that stays open keeps all that was read of it in memory,
        # and a model would be there twice
        with safe_open(self._path, framework="pt") as file:
            return file.get_tensor(name)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        if name in self._low_bit:
            return self._low_bit[name][1:]
        with safe_open(self._path, framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _low_bit_matrices(metadata: Mapping[str, str], path: Path) -> dict[str, tuple[float, int, int]]:
    """Name -> bits, outputs and inputs of the matrices that a file holds as codes."""
    try:
        found = parse_json(metadata.get(LOW_BIT, "{}"))
        matrices = {name: (bits, out, inputs) for name, (bits, out, inputs) in found.items()}
        for bits, *shape in matrices.values():
            if bits not in FORMATS or any(type(size) is not int or size < 1 for size in shape):
                raise ValueError(f"there are no matrices of {shape} codes of {bits} bits")
        return matrices
    except (ValueError, TypeError, AttributeError) as error:
        raise SpikegptError(
            f"{path}: what it says of its codes cannot be read ({error}); use another checkpoint"
        ) from None


def load_model(
    path: str | Path,
    neuron: NeuronFactory | None = None,
    device: str | torch.device = "cpu",
    warn: Warn = warn_on_stderr,
) -> tuple[SpikeGPT, Tokenizer]:
    """Return (model in evaluation mode, its tokenizer) from the folder of a run or of a checkpoint, or by name.

    The names are those of `spikegpt list`: models that come with spikegpt, where no folder here is called so.
    A run gives its best checkpoint, or else its newest. A model trained with other neurons than our LIF needs the same
    `neuron` factory again: code is never stored. `device` is auto, cpu, cuda or cuda:N, or a torch.device. `warn` is
    told what speaks against relying on the model: that it is unfinished, or that nothing proves it whole.

    Raises:
        SpikegptError: nothing whole is there, weights, configuration and tokenizer do not fit each other, a weight is
            not finite, or the device is not there.
    """
    place, path = find_device(device), to_path("the model", path)
    model, tokenizer = read_steadily(path, lambda: _read_model(path, neuron, warn))
    return model.to(place).eval(), tokenizer


def _read_model(path: Path, neuron: NeuronFactory | None, warn: Warn) -> tuple[SpikeGPT, Tokenizer]:
    folder, weights = open_model(path, warn)
    config = read_model_config(folder / "config.json")
    check_header(config, weights, folder)
    model = SpikeGPT(config, neuron, init=False)
    load_weights(model, weights, folder / "model.safetensors")
    if config.weight_bits < FULL and not model.weight_steps:
        raise SpikegptError(
            f"{folder}: config.json says weight_bits {config.weight_bits:g}, the weights are no codes; "
            "the checkpoint is of another configuration"
        )
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    tokens, rows = tokenizer.vocab_size, model.config.vocab_size
    # released models have a few rows more than tokens; where a manifest says that they belong together, any number
    if tokens > rows or (2 * tokens < rows and not (folder / MANIFEST).exists()):
        raise SpikegptError(
            f"{folder / 'tokenizer.json'} has {tokens} tokens, the model {rows}: it is not this model's tokenizer; "
            "put its own there"
        )
    return model, tokenizer


def open_model(path: Path, warn: Warn = warn_on_stderr) -> tuple[Path, TensorFile]:
    """Return (model folder, its weights) of a run or a checkpoint; warn if it is unfinished or nothing proves it whole.

    Raises:
        SpikegptError: no whole model is there.
    """
    folder, newest = locate(path, warn)
    if not (folder / MANIFEST).exists():
        warn(f"{folder} has no {MANIFEST}, so nobody can say whether its files are whole and belong together")
    progress = progress_of(newest)
    if progress is not None and progress[0] < progress[1]:
        warn(f"{path}: step {progress[0]} of {progress[1]}, unfinished")
    return folder, TensorFile(folder / "model.safetensors")


def check_header(config: ModelConfig, weights: TensorFile, folder: Path) -> None:
    """Raise SpikegptError unless the sizes in `config` are those of the weights, before a model of them is made."""
    layers = {int(name.split(".")[1]) for name in weights if re.match(r"blocks\.\d{1,9}\.", name)}
    found = {"n_layer": max(layers, default=-1) + 1}
    if "emb.weight" in weights:
        found["vocab_size"], found["n_embd"] = (*weights.shape_of("emb.weight"), 0, 0)[:2]
    for name, size in found.items():
        if getattr(config, name) != size:
            raise SpikegptError(
                f"{folder}: config.json says {name} {getattr(config, name)}, the weights have {size}; "
                "the checkpoint is of another configuration"
            )


# what weights may be kept as; int8 and float8 mean nothing without their scales
_REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@torch.no_grad()
def load_weights(model: SpikeGPT, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy `weights` into `model`, one after the other.

    Raises:
        SpikegptError: a tensor is missing, too many, of another shape or kind, or not finite; the first one is named.
    """
    wanted = model.state_dict()
    advice = "the checkpoint is of another configuration"
    for name in sorted(wanted.keys() ^ set(weights)):
        raise SpikegptError(
            f"{source}: tensor {name!r} is {'missing' if name in wanted else 'not part of the model'}; {advice}"
        )
    for name, tensor in wanted.items():
        found = weights[name]
        if found.shape != tensor.shape:
            raise SpikegptError(
                f"{source}: {name!r} has shape {tuple(found.shape)}, the model wants {tuple(tensor.shape)}; {advice}"
            )
        if found.dtype not in _REAL:
            raise SpikegptError(f"{source}: {name!r} holds {found.dtype} numbers, want float32; {advice}")
        found = found.to(tensor.dtype)
        check_finite(name, found, source)
        fill(tensor, found)
    is_full = model.config.weight_bits == FULL or not isinstance(weights, TensorFile)
    model.weight_steps = {} if is_full else cast(TensorFile, weights).steps()


def load_training(checkpoint: Path) -> tuple[TensorFile, dict[str, Any]]:
    """Return (tensors, state) that `save_checkpoint` was given; each tensor is read when asked for."""
    state = read_json(checkpoint / "training.json")
    check_format(state, checkpoint / "training.json")
    return TensorFile(checkpoint / "training.safetensors"), state
