"""Writes a safetensors file tensor by tensor, so that a model need not be in memory twice; the library writes all at once.

Format: eight bytes, the length of a JSON header; the header, name -> dtype, shape and place; the numbers, little-endian.
Source: github.com/huggingface/safetensors, README, "Format".
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .files import atomic_path

NAMES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(
    path: Path, dtypes: dict[str, torch.dtype], shapes: dict[str, tuple[int, ...]], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write `tensors`, which come one after the other in the order of `dtypes` and `shapes`; the file appears when it is whole.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype in dtypes.items():
        start, end = end, end + math.prod(shapes[name]) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # the numbers begin at a multiple of eight
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (name, tensor), expected in zip(tensors, dtypes, strict=True):
            assert name == expected and tensor.dtype == dtypes[name] and tuple(tensor.shape) == shapes[name], name
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
