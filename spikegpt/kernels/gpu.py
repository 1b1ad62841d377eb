"""Finds the CUDA sources, compiles them at first use through CuPy (NVRTC, no compiler needed), launches their kernels.

A kernel runs on torch's current stream and the device of its tensors, on their memory as it lies: nothing is copied.
What the arguments of each kernel are stands at the top of its `.cu` file; who calls it, in the `gpu` of each operation.
"""

import functools
import importlib
import importlib.metadata
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .backends import what_to_install

# the macro ELEMENT of cuda/elements.cuh
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# channels of a head that kernels of cuda/heads.cuh are compiled for
HEAD_SIZES = 32, 64, 128
# what these read at once, in bytes
ALIGNMENT = 16
# few, because there are few neurons and many multiprocessors
THREADS = 64


def find_sources() -> Path:
    """Return the folder of the CUDA sources: of the installed package, or of the checkout that it runs from."""
    package = Path(__file__).parent.parent
    for folder in (package / "cuda", package.parent / "cuda"):
        if (folder / "elements.cuh").is_file():
            return folder
    raise FileNotFoundError(
        f"no CUDA sources in {package / 'cuda'} nor in {package.parent / 'cuda'}; install spikegpt again"
    )


@functools.cache
def read_source(name: str) -> str:
    """Return the text of `name`.cu with its own headers written out where they are included.

    One text, because CuPy keeps what it compiled by the text alone: a changed header must change it.
    """
    seen = set()

    def written_out(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (find_sources() / name).read_text(encoding="utf-8")
        text = re.sub(r'^#include "(.+)"$', lambda found: written_out(found[1]), text, flags=re.MULTILINE)
        return text.replace("#pragma once\n", "")

    return written_out(f"{name}.cu")


def launch(source: str, kernel: str, element: torch.dtype, threads: int | tuple[int, ...], *arguments) -> None:
    """Run `kernel` of `source`.cu, compiled for `element`, on `threads` threads.

    Of a tuple the first is the threads along x, the others are blocks along y and z.
    A tensor is passed as its address, None as a null pointer, a number as int or float.

    Raises:
        RuntimeError: CuPy was built for another CUDA version than torch.
    """
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    along_x, *blocks = threads if isinstance(threads, tuple) else (threads,)
    grid = (-(-along_x // THREADS), *blocks)
    cupy = import_cupy()
    with cupy.cuda.Device(device.index), cupy.cuda.Stream.from_external(torch.cuda.current_stream(device)):
        _kernel(source, kernel, element, device.index)(grid, (THREADS,), tuple(map(_as_argument, arguments)))


@functools.cache
def _kernel(source: str, kernel: str, element: torch.dtype, device_index: int):
    return _module(source, element, device_index).get_function(kernel)


@functools.cache
def _module(source: str, element: torch.dtype, device_index: int):
    return import_cupy().RawModule(
        code=read_source(source), options=(f"-DELEMENT={ELEMENTS[element]}",), backend="nvrtc"
    )


def aligned(tensor: Tensor) -> Tensor:
    """Return `tensor` without gaps in memory, from a place on that kernels of cuda/heads.cuh can read."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def head_inputs(operation: str, receptance: Tensor, log_decay: Tensor, key: Tensor, *others: Tensor) -> list[Tensor]:
    """Return (B, T, H, N) and others as kernels of cuda/heads.cuh take them: the decay in the place of its logarithm.

    Raises:
        ValueError: N is none of HEAD_SIZES.
    """
    if key.shape[-1] not in HEAD_SIZES:
        raise ValueError(f"{wrong_head_size(operation, key.shape[-1])}; use backend='auto'")
    return [aligned(tensor) for tensor in (receptance, log_decay.detach().exp(), key, *others)]


def launch_heads(operation: str, kernel: str, key: Tensor, *tensors: Tensor | None) -> None:
    """Run `kernel` of `operation`.cu on a thread for each channel of each head of `key` (B, T, H, N)."""
    B, T, H, N = key.shape
    launch(operation, kernel, key.dtype, B * H * N, *tensors, B, T, H, N)


def wrong_head_size(operation: str, channels: int) -> str:
    """Return what to say of heads that an operation has no kernel for."""
    sizes = ", ".join(map(str, HEAD_SIZES))
    return f"{operation}: the kernel for a GPU takes heads of {sizes} channels, got {channels}"


def _as_argument(value: Tensor | float | None) -> np.generic:
    if isinstance(value, Tensor):
        return np.uintp(value.data_ptr())
    if value is None:
        return np.uintp(0)
    return np.float32(value) if isinstance(value, float) else np.int32(value)


@functools.cache
def import_cupy():
    """Return the module cupy.

    Raises:
        RuntimeError: it was built for another CUDA version than torch; the message says what to install.
    """
    wanted, installed = what_to_install("cupy"), installed_cupy()
    if installed and wanted not in installed:
        found = " ".join(installed)
        raise RuntimeError(
            f"torch was built for CUDA {torch.version.cuda}, CuPy is {found}: "
            f"pip uninstall {found}; pip install {wanted}"
        )
    return importlib.import_module("cupy")


def installed_cupy() -> dict[str, str]:
    """Return {name: version} of pip's CuPy packages; one built from source is named cupy and fits any CUDA."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {name: version for name, version in sorted(packages.items()) if re.fullmatch(r"cupy-cuda\d+x", name or "")}
