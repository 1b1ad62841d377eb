"""What the CPU's kernels compile to on ARM: vector instructions (NEON) by function, read from the assembly.

    python benchmarks/neon.py [--listings FOLDER] [--quick]

No ARM processor is needed and none runs anything: numba is told that it compiles for one. So this says what is
vectorised there, not how fast it is, nor that it is right. Arithmetic in floating point is counted, on a vector
register or on one number; a loop over channels has both, for what is left of the channels is done one by one. Last
line: JSON with functions that have arithmetic and how many have none of it in vectors.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path
from unittest.mock import patch

import llvmlite.binding as llvm
import numba
import torch
from measure import write_result

TRIPLE, PROCESSOR = "aarch64-unknown-linux-gnu", "neoverse-n1"
ARITHMETIC = re.compile(r"^\s+(?:f(?!mov)\w+|[su]cvtf)\s+(?:(v\d+\.\d+[sdh])|[sd]\d+)", re.MULTILINE)
FUNCTION = re.compile(r"^(_ZN8spikegpt\w[\w.$]*):.*?^\.Lfunc_end", re.MULTILINE | re.DOTALL)
B, T, C, HEADS = 2, 40, 128, 2


def compile_for_arm(cache: str) -> None:
    """Make numba compile for ARM from here on; what it compiles cannot be called."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    numba.config.CPU_NAME, numba.config.CPU_FEATURES, numba.config.CACHE_DIR = PROCESSOR, "", cache
    patch("llvmlite.binding.get_process_triple", lambda: TRIPLE).start()


def assembly(function, signature: tuple) -> str:
    function.compile(signature)
    return function.inspect_asm(signature)


def token_step(dtype: str) -> str:
    """Return the assembly of RWKV-4's token step, with weights stored in `dtype`."""
    from spikegpt.config import ModelConfig
    from spikegpt.generate.compiled import decoder, rwkv4
    from spikegpt.generate.compiled.held import HeldType
    from spikegpt.kernels import backends
    from spikegpt.model.network import SpikeGPT

    # by the references, which are not compiled
    with patch.object(backends, "FAST_DTYPES", ()), torch.inference_mode():
        model = SpikeGPT(ModelConfig(n_layer=1, n_embd=64, vocab_size=64)).eval()
        state = model(torch.zeros(1, 1, dtype=torch.long)).state
    # a value is unpacked by compiled code: its type is enough
    with patch.object(decoder, "Held", lambda value: HeldType(numba.typeof(value))):
        rows = decoder.RowDecoder(model, dtype, [1])
        rows.take(state)
    part = next(iter(rows._parts.values()))[0]
    return assembly(rwkv4.decode, (part.held, numba.typeof(part.ids), numba.typeof(part.logits)))


def training_kernels() -> dict[str, str]:
    """Return operation -> the assembly of its kernels, forward and backward."""
    from spikegpt.kernels import cpu, event_wkv, integer_lif, lif, wkv, wkv7

    found: list[str] = []

    def compile_task(task, pieces, small, arguments):
        found.append(assembly(task, tuple(map(numba.typeof, (*next(iter(pieces)), *arguments)))))

    def kernels_of(call, *shapes) -> str:
        found.clear()
        inputs = [torch.rand(shape, requires_grad=True) for shape in shapes]
        call(*inputs)[0].sum().backward()
        return "\n".join(found)

    channels, heads = (B, T, C), (B, T, HEADS, C // HEADS)
    with patch.object(cpu, "_share_out", compile_task):
        return {
            "lif": kernels_of(lif, channels),
            "integer_lif": kernels_of(lambda x: integer_lif(x, membrane_decay=0.5, levels=4, signed=True), channels),
            "wkv": kernels_of(wkv, (C,), (C,), channels, channels),
            "event_wkv": kernels_of(event_wkv, (C,), (C,), channels, channels),
            "wkv7": kernels_of(lambda r, w, *rest: wkv7(r, -w, *rest), *[heads] * 6),
        }


def name_of(symbol: str) -> str:
    """Return `file.function` of a mangled name, each part of which is preceded by its length."""
    parts, rest = [], symbol.removeprefix("_ZN")
    while length := re.match(r"\d+", rest):
        start = length.end()
        parts.append(rest[start : start + int(length[0])])
        rest = rest[start + int(length[0]) :]
    # behind the package, the wing and the folder in it
    return ".".join(parts[3:5])


def count(text: str) -> dict[str, dict[str, int]]:
    """Return function -> its floating-point instructions on vectors and on single numbers, where there are any."""
    counts: dict[str, dict[str, int]] = {}
    for function in FUNCTION.finditer(text):
        on_vectors = [bool(vector) for vector in ARITHMETIC.findall(function[0])]
        if on_vectors:
            found = counts.setdefault(name_of(function[1]), {"vector": 0, "scalar": 0})
            found["vector"] += sum(on_vectors)
            found["scalar"] += len(on_vectors) - sum(on_vectors)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listings", type=Path, help="keep the assembly there")
    parser.add_argument("--quick", action="store_true", help="nothing written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        compile_for_arm(cache)
        texts = {f"token step, {dtype} rows": token_step(dtype) for dtype in ("float32", "bfloat16", "int8")}
        texts |= training_kernels()
    counts = {name: count(text) for name, text in texts.items()}
    for name, functions in counts.items():
        for function, found in functions.items():
            print(f"{name:26s} {function:34s} vector {found['vector']:4d}, scalar {found['scalar']:4d}")
        if options.listings:
            options.listings.mkdir(parents=True, exist_ok=True)
            (options.listings / f"{name}.s").write_text(texts[name])
    found = [(name, function) for name, functions in counts.items() for function in functions]
    without = [[name, function] for name, function in found if not counts[name][function]["vector"]]
    summary = {"functions": len(found), "without_vectors": without}
    if not options.quick:
        command = "python benchmarks/neon.py"
        target = {"triple": TRIPLE, "processor": PROCESSOR, "llvm": ".".join(map(str, llvm.llvm_version_info))}
        write_result("neon", {"command": command, **target, **summary, "instructions": counts})
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
