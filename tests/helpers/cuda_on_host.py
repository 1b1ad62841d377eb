"""Runs the CUDA sources on the CPU, compiled by g++ under tests/helpers/cuda_host/host.h, in place of `gpu.launch`.

Every argument is copied between guards before the call and back after it, so that a write beyond a tensor is seen;
working memory and outputs begin as NaN. Only for kernels whose threads share nothing, which a test asserts of every
source.
"""

import ctypes
import functools
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

from spikegpt.kernels import gpu

HOST = Path(__file__).parent / "cuda_host" / "host.h"
GUARD, GUARD_VALUE = 64, 77
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@functools.cache
def library(source: str, element: int) -> ctypes.CDLL:
    text = gpu.read_source(source)
    kernels = re.findall(r'extern "C" __global__ void (\w+)', re.sub(r"__launch_bounds__\(.*?\) ", "", text))
    doors = "".join(
        f'extern "C" void run_{name}(const unsigned* grid, unsigned threads, int backwards, void** arguments)'
        f" {{ run({name}, grid, threads, backwards, arguments); }}\n"
        for name in kernels
    )
    folder = Path(tempfile.mkdtemp(prefix="cuda_on_host"))
    (folder / "kernels.cpp").write_text(f'#include "{HOST}"\n#define ELEMENT {element}\n{text}\n{doors}')
    # no fused multiply-add unless it is written, as on the GPU where it matters
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-w",
        "-shared",
        "-fPIC",
        "-o",
        folder / "kernels.so",
        folder / "kernels.cpp",
    ]
    done = processes.run(command)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(folder / "kernels.so"))
    shutil.rmtree(folder)
    return loaded


class HostLauncher:
    """`gpu.launch` for CPU tensors; notes the kernels it ran."""

    def __init__(self, backwards: bool = False):
        self.backwards = backwards
        self.ran: list[str] = []

    def __call__(self, source, kernel, element, threads, *arguments):
        along_x, *blocks = threads if isinstance(threads, tuple) else (threads,)
        grid = (ctypes.c_uint * 3)(*(-(-along_x // gpu.THREADS), *blocks, 1, 1)[:3])
        guarded = {i: _between_guards(a) for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
        values = [_as_c(guarded[i][GUARD:-GUARD] if i in guarded else a) for i, a in enumerate(arguments)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values))
        getattr(library(source, gpu.ELEMENTS[element]), f"run_{kernel}")(
            grid, gpu.THREADS, int(self.backwards), pointers
        )
        for i, buffer in guarded.items():
            ends = torch.cat([buffer[:GUARD], buffer[-GUARD:]])
            assert (ends == GUARD_VALUE).all(), f"{kernel} wrote beyond its argument {i}"
            target, found = arguments[i].detach().view(-1), buffer[GUARD:-GUARD]
            # autograd forbids writing to what it saved, even the same numbers
            if not torch.equal(target.view(torch.uint8), found.view(torch.uint8)):
                target.copy_(found)
        self.ran.append(kernel)


def _between_guards(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.is_contiguous(), "a kernel was given a tensor that is not contiguous"
    ends = torch.full((GUARD,), GUARD_VALUE, dtype=tensor.dtype)
    return torch.cat([ends, tensor.detach().reshape(-1), ends])


def _as_c(value):
    argument = gpu._as_argument(value)
    return {np.uintp: ctypes.c_void_p, np.float32: ctypes.c_float, np.int32: ctypes.c_int}[type(argument)](
        argument.item()
    )
