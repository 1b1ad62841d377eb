"""Writes a safetensors file tensor by tensor, so that a model need not be in memory twice.

The library writes all at once. Format: eight bytes, the length of a JSON header; the header, name -> dtype, shape and
place; the numbers, little-endian. Source: github.com/huggingface/safetensors, README, "Format".
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..common.files import atomic_path
from .files import check_finite


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write float32 `tensors`, which come in the order of `shapes`; the file appears when it is whole.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
        SpikegptError: a number is not finite; its tensor is named, and nothing is written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * torch.float32.itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # the numbers begin at a multiple of eight
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (name, tensor), expected in zip(tensors, shapes, strict=True):
            check_finite(name, tensor, path)
            assert name == expected and tensor.dtype == torch.float32 and tuple(tensor.shape) == shapes[name], name
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
