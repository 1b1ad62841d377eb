"""The files of a model folder: JSON of a known format, tensors, and the manifest that proves what was written.

model.safetensors  config.json  tokenizer.json   (all that inference needs)
training.safetensors  training.json              (what resuming needs besides)
manifest.json                                    (size and sha256 of each of these that is there)
"""

import json
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..common.errors import SpikegptError
from ..common.files import atomic_path, sha256_of, write_atomically
from ..common.json_text import parse_json

FORMAT = 1
MANIFEST = "manifest.json"
# in the header of weights: the matrices that are there as codes, JSON: name -> bits, outputs, inputs
LOW_BIT = "low_bit"
MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json")
TRAINING_FILES = ("training.safetensors", "training.json")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; SpikegptError if it is missing or broken."""
    try:
        # a pipe may never end
        if path.exists() and not path.is_file():
            raise SpikegptError(f"{path} is a folder, pipe or device, expected a file of JSON; restore it")
        values = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise SpikegptError(f"{path} does not exist; give the folder of a run or of a checkpoint") from None
    # not UTF-8, not JSON, a number of a thousand digits, brackets nested too deep
    except ValueError as error:
        raise SpikegptError(f"{path} is not JSON ({error}); restore it or use another checkpoint") from None
    if not isinstance(values, dict):
        raise SpikegptError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def check_format(values: dict[str, Any], path: Path) -> None:
    """Raise SpikegptError unless `values`, read from `path`, is of a format that this version reads."""
    found = values.get("format")
    if not isinstance(found, int) or found < 1:
        raise SpikegptError(f"{path} has no format number; it was not written by spikegpt")
    if found > FORMAT:
        raise SpikegptError(f"{path} has format {found}, this spikegpt reads up to {FORMAT}; install a newer spikegpt")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that those may read whom the umask lets.

    Raises:
        OSError, SafetensorError: it cannot be written; what was there before is untouched.
    """
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        # the library lets only the owner read
        temporary.chmod(mode)


def check_finite(name: str, tensor: Tensor, source: Path) -> None:
    """Raise SpikegptError if `tensor`, which `source` holds under `name`, has a NaN or an infinity."""
    if not is_finite(tensor):
        raise SpikegptError(
            f"{source}: {name!r} holds NaN or infinity: its training diverged, or the file is damaged; "
            "use other weights"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether `tensor` holds neither NaN nor infinity; nothing of its size is made."""
    # a NaN is both the least and the greatest
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def write_manifest(folder: Path) -> None:
    """Write down what the files of a model folder are now."""
    files = (folder / name for name in sorted((*MODEL_FILES, *TRAINING_FILES)))
    facts = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files if path.exists()}
    write_atomically(folder / MANIFEST, json.dumps({"format": FORMAT, "files": facts}, indent=1))


def fault_of(folder: Path, names: tuple[str, ...] = (*MODEL_FILES, *TRAINING_FILES)) -> str | None:
    """Return what is wrong with the files `names` of a model folder, or None: each that is there is as it was written.

    Those of MODEL_FILES have to be there, others only where the manifest says so.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        check_format(manifest, folder / MANIFEST)
    except SpikegptError as error:
        return str(error)
    files = manifest.get("files")
    for name in names:
        path, wanted = folder / name, files.get(name) if isinstance(files, dict) else None
        if wanted is None and name not in MODEL_FILES and not path.exists():
            continue
        if not isinstance(wanted, dict):
            return f"{MANIFEST} does not say what {name} was"
        if not path.is_file():
            return f"{name} is missing"
        try:
            fault = _difference(path, wanted)
        except FileNotFoundError:
            # removed at this moment
            return f"{name} is missing"
        if fault is not None:
            return fault
    return None


def _difference(path: Path, wanted: dict[str, Any]) -> str | None:
    if (size := path.stat().st_size) != wanted.get("bytes"):
        return f"{path.name} has {size} bytes, written were {wanted.get('bytes')}"
    if sha256_of(path) != wanted.get("sha256"):
        return f"{path.name} has changed since it was written (sha256 differs)"
    return None
