"""Files of weights as others keep them: one or several, of torch or safetensors, the weights alone or among others.

What a file is, its first bytes say, not its name. Opening never runs code. Tensors are mapped or read one at a time, so
that no file is in memory twice. What they are called: names.py.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import read_json
from ..checkpoint.run import FOREIGN_SUFFIXES, find_model
from ..checkpoint.weights import TensorFile, open_model
from ..common.errors import SpikegptError
from ..common.json_text import NO_JSON
from .names import some, whole_model

# in the order in which transformers looks for them
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# how a file begins that is often taken for weights; what it is, and what to do
BEGINNINGS = (
    *((beginning.encode(), what) for beginning, what in NO_JSON.items()),
    (b"GGUF", "a GGUF file, of numbers rounded for llama.cpp; take the weights that it was made from"),
    (b"\x93NUMPY", "an array of NumPy; save name -> tensor with torch.save or safetensors"),
    (b"\x89HDF", "an HDF5 file; save name -> tensor with torch.save or safetensors"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
)
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
INDEX = ".index.json"
# what trainers write beside the weights: the state of the training
COMPANION = re.compile(r"(optim|optimizer|scheduler|scaler|training_args|rng_state)s?([-_.].*)?")
# a training state is not nested deeper
DEEPEST = 4


def find_weights(source: Path) -> Path:
    """Return the file that holds the weights of `source`, or the index of several; `source` itself if it is a file.

    Raises:
        SpikegptError: there is none, or it is not clear which.
    """
    if source.is_file():
        return _whole(source)
    if not source.exists():
        raise SpikegptError(f"{source} does not exist; give a .pth or .safetensors file, or the folder of a model")
    if not source.is_dir():
        raise SpikegptError(f"{source} is neither a file nor a folder; give a .pth or .safetensors file")
    for name in FOLDER_FILES:
        if (source / name).exists():
            return source / name
    files = sorted(path for path in source.iterdir() if path.is_file() and not COMPANION.fullmatch(path.stem))
    found = (
        [path for path in files if path.name.endswith(INDEX)]
        or [path for path in files if path.suffix.lower() in FOREIGN_SUFFIXES]
        # whatever they are called
        or [path for path in files if _holds_a_model(path) is True]
    )
    if len(found) > 1:
        found = [path for path in found if _holds_a_model(path) is not False] or found
    if len(found) > 1:
        raise SpikegptError(f"{source} holds several files of weights; give one: {some([str(path) for path in found])}")
    if found:
        return _whole(found[0])
    if not (source / "checkpoints").exists():
        raise SpikegptError(f"{source} holds no weights; want one of {', '.join(FOLDER_FILES)}, or one .pth file")
    return open_model(source)[0] / "model.safetensors"


def _whole(file: Path) -> Path:
    """`file`, unless its name says that it is one of several parts."""
    part = re.search(r"-(\d+)-of-(\d+)$", file.stem)
    if part and int(part[2]) > 1:
        raise SpikegptError(
            f"{file} is a part of {int(part[2])}, and nothing says where the others are; get the index, *{INDEX}, "
            "that was beside it, and give that"
        )
    return file


def _holds_a_model(path: Path) -> bool | None:
    """Whether a file holds the embedding of a model, or an index names one; None if it cannot be opened."""
    try:
        values = _open_index(path) if path.name.endswith(INDEX) else _open_file(path)
    except SpikegptError:
        return None
    if isinstance(values, TensorFile | _Joined):
        return any(whole_model(name) is not None for name in values)
    return any(True for _ in _sets_of_weights(values))


def open_weights(path: Path) -> Mapping[str, Tensor]:
    """Return name -> tensor of a file, or of those that an index names; nothing is read before it is asked for.

    Raises:
        SpikegptError: it is broken, holds something else than the weights of one model, or would run code.
    """
    if path.name.endswith(INDEX):
        return _open_index(path)
    values = _open_file(path)
    return values if isinstance(values, TensorFile) else _the_weights(values, path)


def _open_file(path: Path) -> Any:
    """What torch.save wrote into a file, or the tensors of a safetensors file."""
    with path.open("rb") as file:
        start = file.read(64)
    is_pickle = start.startswith((ZIP, PICKLE))
    # eight bytes, the length of a header, and the header, which is JSON; a pickle by this name is refused there
    if start[8:9] == b"{" or (is_pickle and path.suffix == ".safetensors"):
        # a checkpoint of ours is held to its manifest
        return TensorFile(find_model(path.parent) / path.name if path.name == "model.safetensors" else path)
    for beginning, what in BEGINNINGS:
        if start.startswith(beginning):
            raise SpikegptError(f"{path} is {what}")
    if is_pickle:
        return _read_pickle(path, is_mappable=start.startswith(ZIP) and _is_plain_archive(path))
    found = f"begins with {start[:24]!r}" if start else "is empty"
    raise SpikegptError(f"{path} {found}: neither a file of torch.save nor of safetensors; get it again")


class _Joined(Mapping):
    """The tensors of several files, each from the file that the index says."""

    def __init__(self, file_of: dict[str, Mapping[str, Tensor]]):
        self._file_of = file_of

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _open_index(path: Path) -> Mapping[str, Tensor]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise SpikegptError(f"{path} has no 'weight_map' of names and files; get it again, or give one file of weights")
    # an index names its neighbours, and nothing else on this machine
    strange = sorted(name for name in set(names.values()) if Path(name).name != name)
    if strange:
        raise SpikegptError(f"{path} names files outside its folder: {some(strange)}")
    missing = sorted(name for name in set(names.values()) if not (path.parent / name).is_file())
    if missing:
        raise SpikegptError(f"{path} names files that are missing: {some([str(path.parent / n) for n in missing])}")
    # a part need not hold the embedding
    files = {name: _open_file(path.parent / name) for name in sorted(set(names.values()))}
    if not all(isinstance(file, Mapping) for file in files.values()):
        raise SpikegptError(f"{path} names files that hold something else than names and tensors")
    absent = sorted(f"{tensor} in {file}" for tensor, file in names.items() if tensor not in files[file])
    if absent:
        raise SpikegptError(f"{path} names tensors that are not there: {some(absent)}; get its files again")
    return _Joined({tensor: files[file] for tensor, file in names.items()})


def _is_plain_archive(path: Path) -> bool:
    """Whether the tensors of a zip archive of torch.save lie in it as they are; packed anew, they may be compressed."""
    try:
        parts = zipfile.ZipFile(path).infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise SpikegptError(f"{path} is not a whole file of torch.save ({error}); get it again") from None
    if not any(part.filename.endswith("data.pkl") for part in parts):
        raise SpikegptError(
            f"{path} is a zip archive, but not of torch.save: it holds {some([part.filename for part in parts])}"
        )
    return all(part.compress_type == zipfile.ZIP_STORED for part in parts)


def _read_pickle(path: Path, is_mappable: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except pickle.UnpicklingError as error:
        # torch's own advice, which follows, is to trust it
        found = re.search(r"WeightsUnpickler error:\s*(.+?)(?:\. |\n|$)", str(error))
        reason = found[1] if found else str(error).split("\n")[0]
        raise SpikegptError(
            f"{path} holds more than tensors, or is damaged, and opening it could run code: refused ({reason}). Ask "
            "its author for torch.save(model.state_dict(), FILE), or for safetensors"
        ) from None
    # whatever a broken pickle may ask for, torch's reader takes it at its word
    except (
        EOFError,
        RuntimeError,
        ValueError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        struct.error,
    ) as error:
        reason = re.split(r"\. |\n", str(error))[0]
        raise SpikegptError(
            f"{path} is not a whole file of torch.save ({type(error).__name__}: {reason}); get it again"
        ) from None


def _the_weights(values: Any, path: Path) -> dict[str, Tensor]:
    """The one model's weights in what torch.save wrote, wherever a trainer put them among other things."""
    found = dict(_sets_of_weights(values))
    if len(found) > 1:
        raise SpikegptError(
            f"{path} holds several sets of weights, under {some(list(found))}; which is meant is for you to say: save "
            "one of them alone, with torch.save"
        )
    if not found:
        holds = some([repr(key) for key in values]) if isinstance(values, dict) else type(values).__name__
        raise SpikegptError(
            f"{path} has no emb.weight: neither RWKV-4, RWKV-7 nor SpikeGPT. It holds {holds or 'nothing'}"
        )
    return next(iter(found.values()))


def _sets_of_weights(values: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (keys that lead there, name -> tensor) of each dictionary in `values` that holds an embedding."""
    if not isinstance(values, dict) or depth > DEEPEST:
        return
    tensors = {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if any(whole_model(name) is not None for name in tensors):
        yield place, tensors
        return
    for key, value in values.items():
        yield from _sets_of_weights(value, f"{place}[{key!r}]", depth + 1)
