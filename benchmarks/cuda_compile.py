"""Compile every CUDA source for every target and element type, with no GPU and no driver; print what each kernel needs.

    python benchmarks/cuda_compile.py         table: registers, spilled bytes, stack, shared memory by kernel and target
    python benchmarks/cuda_compile.py --quick         one target
    python benchmarks/cuda_compile.py --check         all of it; writes nothing

Needs `pip install cuda-bindings nvidia-cuda-nvrtc`. Warnings count as failures.
Last line: JSON with compiled (modules), failed and spilled (kernels that keep registers in local memory).
"""

import argparse
import json
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from cuda.bindings import nvrtc
from measure import write_result

from spikegpt.kernels.gpu import ELEMENTS, find_sources, read_source

TARGETS = ("sm_75", "sm_80", "sm_90", "sm_100")


@dataclass(frozen=True)
class Kernel:
    """What one kernel, compiled for one target and element type, needs."""

    source: str
    kernel: str
    target: str
    element: str
    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int


def compile_job(job: tuple[str, torch.dtype, str]) -> tuple[int, str]:
    """Return (bytes of machine code, 0 if there is none; the compiler's log) for a source, element type and target."""
    source, dtype, target = job
    options = [f"--gpu-architecture={target}".encode(), f"-DELEMENT={ELEMENTS[dtype]}".encode(), b"--ptxas-options=-v"]
    _, program = nvrtc.nvrtcCreateProgram(read_source(source).encode(), f"{source}.cu".encode(), 0, [], [])
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    text = f"{source}.cu for {target}, {dtype}: {log.decode().strip(chr(0))}"
    is_compiled = status == nvrtc.nvrtcResult.NVRTC_SUCCESS
    return nvrtc.nvrtcGetCUBINSize(program)[1] if is_compiled else 0, text


def read_log(log: str) -> dict[str, tuple[int, int, int, int]]:
    """Return {kernel: (registers, spilled bytes, stack bytes, shared bytes)} as ptxas reports them."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        stack, stores, loads = map(
            int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()
        )
        shared = re.search(r"(\d+) bytes smem", part)
        found[name] = (
            int(re.search(r"Used (\d+) registers", part)[1]),
            stores + loads,
            stack,
            int(shared[1]) if shared else 0,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    sources = sorted(path.stem for path in find_sources().glob("*.cu"))
    targets = TARGETS[:1] if options.quick else TARGETS
    jobs = [(source, dtype, target) for source in sources for dtype in ELEMENTS for target in targets]
    kernels, sizes, failures = [], {}, []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for (source, dtype, target), (size, log) in zip(jobs, pool.map(compile_job, jobs), strict=True):
            name = str(dtype).removeprefix("torch.")
            if not size or "warning" in log:
                failures.append(log)
            if size:
                sizes[f"{source} {name} {target}"] = size
                kernels += [Kernel(source, kernel, target, name, *needs) for kernel, needs in read_log(log).items()]
    print(f"{'kernel':32}{'element':10}{'target':8}{'registers':>10}{'spilled':>9}{'stack':>7}{'shared':>8}")
    for k in kernels:
        print(
            f"{k.kernel:32}{k.element:10}{k.target:8}{k.registers:10}{k.spilled_bytes:9}{k.stack_bytes:7}{k.shared_bytes:8}"
        )
    print(f"\n{'module':32}" + "".join(f"{target:>12}" for target in TARGETS) + "   bytes of machine code, bfloat16")
    for source in sources:
        print(f"{source:32}" + "".join(f"{sizes.get(f'{source} bfloat16 {target}', 0):12,}" for target in TARGETS))
    for failure in failures:
        print(failure, file=sys.stderr)
    spilled = sorted({f"{k.kernel} {k.element} {k.target}" for k in kernels if k.spilled_bytes or k.stack_bytes})
    summary = {"compiled": len(sizes), "failed": len(failures), "spilled": spilled}
    if not (options.quick or options.check):
        write_result("cuda_compile", {**summary, "code_bytes": sizes, "kernels": [vars(k) for k in kernels]})
    print(json.dumps(summary))
    sys.exit(bool(failures or spilled))


if __name__ == "__main__":
    main()
