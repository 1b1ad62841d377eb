"""Everything that needs a GPU, in one call of at most 9 minutes: kernel tests, bandwidth, training, decoding speed.

    python benchmarks/gpu.py [--minutes 9] [--corpus FILE --corpus-minutes 2]
    python benchmarks/gpu.py --rehearse   every section on the CPU at toy sizes; checks the script, writes nothing

Needs torch, cupy and numpy; pytest for the tests; spikingjelly and flash-linear-attention are compared if importable.
Bytes are those an operation must move: inputs once, outputs once. The share is of a device copy measured in the same
run. Without a GPU the result says "not measured". Last line: JSON, also in results/gpu.json.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_wkv7 import HEAD_SIZE, measure_event_wkv7, measure_wkv7, wkv7_inputs
from measure import write_result
from torch.nn import functional as F

from spikegpt.config import model_preset
from spikegpt.generate.engine import Engine, why_not_by_rows
from spikegpt.generate.graphs import ForwardStep
from spikegpt.kernels import WKVState, event_wkv, integer_lif, lif, wkv, wkv7
from spikegpt.model.initial import calibrate_thresholds
from spikegpt.model.network import SpikeGPT

TREE = Path(__file__).parent.parent
SHAPE = (16, 1024, 768)
EVENT_RATES = (0.02, 0.10, 0.30, 1.0)
BLOCKS = ("output", "input", "none")


class Machine:
    """Where the measurements run, and for how long they still may."""

    def __init__(self, device: str, minutes: float):
        self.device, self.is_gpu = device, device == "cuda"
        self.ends = time.monotonic() + 60 * minutes

    def left_s(self) -> float:
        return self.ends - time.monotonic()

    def finish(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def times_s(self, function: Callable[[], Any], repetitions: int = 20) -> list[float]:
        """Return the seconds of each of `repetitions` calls, after two to warm up."""
        for _ in range(2):
            function()
        times = []
        for _ in range(repetitions if self.is_gpu else 2):
            self.finish()
            start = time.perf_counter()
            function()
            self.finish()
            times.append(time.perf_counter() - start)
        return times


def spread(times: list[float], amount: float) -> dict[str, float]:
    """Return amount per second: median and quartiles over the calls."""
    rates = sorted(amount / t for t in times)
    quarter = len(rates) // 4
    return {"median": statistics.median(rates), "low": rates[quarter], "high": rates[-1 - quarter]}


def run_tests(machine: Machine) -> dict[str, Any]:
    if not machine.is_gpu:
        return {"passed": "not measured: no GPU"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(TREE / "tests" / "kernels" / "test_gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TREE)
    failed = done.stdout[-3000:] if done.returncode else ""
    return {"passed": done.returncode == 0, "summary": done.stdout.strip().splitlines()[-1:], "output": failed}


def copy_bandwidth(machine: Machine) -> float:
    """Return bytes per second, read and written, of the best device copy of half a gigabyte."""
    source = torch.empty(2**27 if machine.is_gpu else 2**20, device=machine.device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / min(machine.times_s(lambda: target.copy_(source)))


def operations(
    machine: Machine, shape: tuple[int, int, int], dtype: torch.dtype
) -> dict[str, tuple[Callable[..., Any], list[torch.Tensor]]]:
    """Return name -> (function, inputs): the first of the outputs is the sequence."""
    B, T, C = shape
    generator = torch.Generator(machine.device).manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, device=machine.device)

    decay, first = normal(C), normal(C)
    x, v = normal(B, T, C).to(dtype), normal(B, T, C)
    made = {
        "lif": (lambda x: lif(x), [x]),
        "integer_lif": (lambda x: integer_lif(x, levels=4, signed=True), [x]),
        "integer_lif with memory": (lambda x: integer_lif(x, levels=4, signed=True, membrane_decay=0.5), [x]),
        "wkv": (wkv, [decay, first, x, v.to(dtype)]),
        "wkv gated": (
            lambda w, u, k, v, r: wkv(w, u, k, v, receptance=r),
            [decay, first, x, v.to(dtype), normal(B, T, C).to(dtype)],
        ),
        "wkv7": (wkv7, wkv7_inputs((B, T, C // HEAD_SIZE, HEAD_SIZE), dtype, machine.device)),
    }
    for rate in EVENT_RATES:
        fired = torch.rand(B, T, C, generator=generator, device=machine.device) < rate
        made[f"event_wkv {rate}"] = event_wkv, [decay, first, x, (v.sign() * fired).to(dtype)]
    return made


def measure_kernels(machine: Machine, copy: float) -> dict[str, Any]:
    """Forward and backward of every operation in bfloat16, as a share of the copy bandwidth."""
    shape = SHAPE if machine.is_gpu else (2, 64, 64)
    found = {}
    for name, (function, inputs) in operations(machine, shape, torch.bfloat16).items():
        inputs = [tensor.requires_grad_() for tensor in inputs]
        sequences = sum(tensor.nbytes for tensor in inputs if tensor.dim() > 1)
        with torch.no_grad():
            forward = machine.times_s(lambda f=function, i=inputs: f(*i))
        output = function(*inputs)[0]
        grad = torch.ones_like(output)
        backward = machine.times_s(lambda o=output, i=inputs, g=grad: torch.autograd.grad(o, i, g, retain_graph=True))
        found[name] = {
            "forward_bytes_per_s": spread(forward, sequences + output.nbytes),
            "backward_bytes_per_s": spread(backward, 2 * sequences + output.nbytes),
            "forward_ms": 1e3 * statistics.median(forward),
            "backward_ms": 1e3 * statistics.median(backward),
        }
        for way in ("forward", "backward"):
            found[name][f"{way}_share_of_copy"] = found[name][f"{way}_bytes_per_s"]["median"] / copy
    return found


def measure_packed(machine: Machine) -> dict[str, Any]:
    """The same neurons and memory with the spikes as one bit each."""
    if not machine.is_gpu:
        return {"measured": "not measured: no GPU"}
    from spikegpt.kernels.event_wkv import gpu as cuda_event_wkv
    from spikegpt.kernels.lif import gpu as cuda_lif
    from spikegpt.kernels.lif.options import LIFOptions

    B, T, C = SHAPE
    current = 2 * torch.randn(B, T, C, device=machine.device, dtype=torch.bfloat16)
    zeros, decay = torch.zeros(B, C, device=machine.device), torch.full((C,), 0.5, device=machine.device)
    found = {
        "lif_ms": 1e3
        * statistics.median(machine.times_s(lambda: cuda_lif.lif_forward_packed(current, zeros, decay, LIFOptions())))
    }
    for threshold in (1.0, 2.0, 4.0):
        options = LIFOptions(threshold=threshold)
        packed, _, _ = cuda_lif.lif_forward_packed(current, zeros, decay, options)
        rate = lif(current, options=options)[0].float().mean().item()
        inputs = (decay, decay, current, packed.unsqueeze(0), False, zeros, zeros)
        found[f"event_wkv_ms at {rate:.3f}"] = 1e3 * statistics.median(
            machine.times_s(lambda i=inputs: cuda_event_wkv.event_wkv_forward_packed(*i))
        )
    return found


def check_same(name: str, theirs: torch.Tensor, ours: torch.Tensor) -> None:
    error = (theirs - ours).abs().max().item()
    assert error < 1e-3, f"{name} differs from ours by {error}: it computes something else"


def plain_wkv(machine: Machine) -> Callable[..., torch.Tensor] | None:
    """Return the published manner of the WKV as a function, or None without a GPU."""
    if not machine.is_gpu:
        return None
    import cupy
    import numpy as np

    kernel = cupy.RawModule(code=(Path(__file__).parent / "plain_wkv.cu").read_text(), backend="nvrtc").get_function(
        "plain_wkv"
    )

    def run(log_decay, first, key, value):
        B, T, C = key.shape
        output = torch.empty_like(key)
        with cupy.cuda.Stream.from_external(torch.cuda.current_stream()):
            pointers = [np.uintp(tensor.data_ptr()) for tensor in (log_decay, first, key, value, output)]
            kernel((-(-B * C // 32),), (32,), (*pointers, *map(np.int32, (B, T, C))))
        return output

    return run


def measure_against_others(machine: Machine) -> dict[str, Any]:
    """Forward times of what others use, and ours beside them; a ratio above 1 says that ours is faster."""
    found = {}
    B, T, C = SHAPE if machine.is_gpu else (2, 16, 32)
    x = torch.randn(B, T, C, device=machine.device)

    def against(name: str, ours: Callable, theirs: Callable, repetitions: int = 10) -> None:
        mine, other = (statistics.median(machine.times_s(function, repetitions)) for function in (ours, theirs))
        found[name] = {"ours_ms": 1e3 * mine, "theirs_ms": 1e3 * other, "ratio": other / mine}

    with torch.no_grad():
        against("lif / torch loop", lambda: lif(x), lambda: lif(x, backend="reference"), 3)
        w, u = (torch.randn(C, device=machine.device) for _ in range(2))
        against("wkv / torch loop", lambda: wkv(w, u, x, x), lambda: wkv(w, u, x, x, backend="reference"), 3)
        if importlib.util.find_spec("spikingjelly"):
            theirs = (
                importlib.import_module("spikingjelly.activation_based.neuron")
                .LIFNode(tau=2.0, step_mode="m")
                .to(machine.device)
            )
            time_first = x.transpose(0, 1).contiguous()

            def jelly():
                theirs.reset()
                return theirs(time_first)

            # version 2 chooses its CUDA or Triton kernel by itself; before, one asked for it
            if machine.is_gpu and "cupy" in getattr(theirs, "supported_backends", ()):
                theirs.backend = "cupy"
            against(f"lif / SpikingJelly {importlib.metadata.version('spikingjelly')}", lambda: lif(x), jelly)
        else:
            found["lif / SpikingJelly"] = "not measured: spikingjelly is not installed"
        if importlib.util.find_spec("fla") and machine.is_gpu:
            rwkv4 = importlib.import_module("fla.ops.rwkv4")
            # numerator, denominator, exponent; they take the raw decay too
            state = torch.stack(tuple(WKVState.empty(B, C, device=machine.device)), dim=1).unsqueeze(2)
            theirs = rwkv4.fused_recurrent_rwkv4(w, u, x, x, state)[0]
            check_same("flash-linear-attention", theirs, wkv(w, u, x, x)[0])
            against(
                "wkv / flash-linear-attention",
                lambda: wkv(w, u, x, x),
                lambda: rwkv4.fused_recurrent_rwkv4(w, u, x, x, state),
            )
        else:
            found["wkv / flash-linear-attention"] = "not measured: fla is not installed"
        plain = plain_wkv(machine)
        for rows in (1, B):
            if plain is None:
                found[f"wkv / one thread per channel, B x C = {rows * C}"] = "not measured: no GPU"
                continue
            few = x[:rows].contiguous()
            check_same("one thread per channel", plain(-w.exp(), u, few, few), wkv(w, u, few, few)[0])
            half = few.bfloat16()
            against(
                f"wkv / one thread per channel, B x C = {rows * C}",
                lambda h=half: wkv(w, u, h, h),
                lambda f=few: plain(-w.exp(), u, f, f),
            )
    return found


def make_model(machine: Machine, spiking: str) -> SpikeGPT:
    torch.manual_seed(0)
    changes = {} if machine.is_gpu else {"n_layer": 1, "n_embd": 32, "ctx_len": 16, "vocab_size": 64}
    with torch.device(machine.device):
        return SpikeGPT(model_preset("spikegpt-46m", spiking=spiking, dropout=0.0, **changes))


def measure_training(machine: Machine) -> dict[str, Any]:
    """Tokens per second and peak memory of whole training steps in bfloat16, of the three models of 46M parameters."""
    batch, length = (8, 1024) if machine.is_gpu else (2, 16)
    found: dict[str, Any] = {}
    for is_compiled in (False, True):
        for spiking in BLOCKS:
            name = f"{spiking}{' compiled' if is_compiled else ''}"
            if machine.left_s() < 90:
                found[name] = "not measured: out of time"
                continue
            model = make_model(machine, spiking)
            ids = torch.randint(model.config.vocab_size, (batch, length + 1), device=machine.device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=machine.is_gpu)
            forward = torch.compile(model) if is_compiled else model

            def step(forward=forward, ids=ids, optimizer=optimizer):
                with torch.autocast(machine.device, torch.bfloat16):
                    logits = forward(ids[:, :-1]).logits
                F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
                optimizer.step()
                optimizer.zero_grad()

            if machine.is_gpu:
                torch.cuda.reset_peak_memory_stats()
            times = machine.times_s(step, 10)
            peak = torch.cuda.max_memory_allocated() if machine.is_gpu else 0
            found[name] = {"tokens_per_s": spread(times, batch * length), "peak_bytes": peak}
            del model, optimizer, forward, step
    for spiking in ("input", "output"):
        both = found[spiking], found["none"]
        if all(isinstance(result, dict) for result in both):
            ours, twin = (result["tokens_per_s"]["median"] for result in both)
            found[f"step time of {spiking} / twin"] = twin / ours
    return found


def measure_decoding(machine: Machine) -> dict[str, Any]:
    """Tokens per second of the engine, in bfloat16, for 1 and 64 texts: by rows of what fired, and by dense products.

    On a GPU a token is a replayed CUDA graph; beside it the same forward pass, launched piece by piece.
    """
    found: dict[str, Any] = {}
    for spiking in BLOCKS:
        model = make_model(machine, spiking).eval()
        if spiking == "input":
            calibrate_thresholds(model, 0.15)
        model = model.bfloat16()
        for texts in (1, 64):
            tokens = torch.zeros(texts, dtype=torch.long, device=machine.device)
            with torch.inference_mode():
                state = model(tokens[:, None]).state
            piecewise = ForwardStep(model)
            piecewise.take(state)
            steps = {"piece by piece": piecewise.step}
            ways = {"dense": ("float32", False)}
            if not why_not_by_rows(model):
                # the rows of a model in bfloat16 are so, too, unless int8 is asked for
                ways |= {"rows": ("float32", True), "int8 rows": ("int8", True)}
            for name, (weights, by_rows) in ways.items():
                engine = Engine(model, weights=weights)
                engine.start(state, by_rows=by_rows)
                steps[name] = engine.step
            for name, step in steps.items():
                times = machine.times_s(lambda s=step, t=tokens: s(t))
                found[f"{spiking}, {texts} texts, {name}"] = {"tokens_per_s": spread(times, texts)}
    for texts in (1, 64):
        twin = found[f"none, {texts} texts, dense"]["tokens_per_s"]["median"]
        ours = [part["tokens_per_s"]["median"] for name, part in found.items() if name.startswith(f"input, {texts} ")]
        found[f"best of the spike-driven / twin, {texts} texts"] = max(ours) / twin
    return found


def measure_event_matvec(machine: Machine) -> dict[str, Any]:
    """One matrix-vector product of 3072 x 3072 by rows that fired, against torch's dense one in bfloat16."""
    from spikegpt.kernels import event_matvec

    size = 3072 if machine.is_gpu else 64
    weight = torch.randn(size, size, device=machine.device, dtype=torch.bfloat16)
    found = {}
    for rate in (0.05, 0.15, 0.25):
        spikes = (torch.rand(1, size, device=machine.device) < rate).to(torch.bfloat16)
        with torch.inference_mode():
            dense = statistics.median(machine.times_s(lambda s=spikes: s @ weight))
            ours = statistics.median(machine.times_s(lambda s=spikes: event_matvec(s, weight)))
        found[f"rate {rate}"] = {"dense_us": 1e6 * dense, "ours_us": 1e6 * ours, "ratio": dense / ours}
    return found


def train_on_corpus(machine: Machine, corpus: Path | None, minutes: float) -> dict[str, Any] | str:
    """Bits per byte on the last twentieth of a file after `minutes` of training on its bytes: 46M, bfloat16."""
    if corpus is None:
        return "not measured: no --corpus"
    text = torch.frombuffer(bytearray(corpus.read_bytes()), dtype=torch.uint8)
    cut = len(text) * 19 // 20
    length, batch = (1024, 16) if machine.is_gpu else (16, 2)
    found: dict[str, Any] = {"corpus": corpus.name, "bytes": len(text), "minutes": minutes}
    for spiking in BLOCKS:
        torch.manual_seed(0)
        changes = {} if machine.is_gpu else {"n_layer": 1, "n_embd": 32}
        config = model_preset("spikegpt-46m", spiking=spiking, vocab_size=256, ctx_len=length, dropout=0.0, **changes)
        with torch.device(machine.device):
            model = SpikeGPT(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=machine.is_gpu)
        generator = torch.Generator().manual_seed(0)

        def loss_of(starts, model=model):
            ids = torch.stack([text[start : start + length + 1] for start in starts]).long().to(machine.device)
            with torch.autocast(machine.device, torch.bfloat16):
                logits = model(ids[:, :-1]).logits
            return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

        ends, steps = time.monotonic() + 60 * minutes, 0
        while time.monotonic() < ends:
            loss_of(torch.randint(cut - length - 1, (batch,), generator=generator)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        model.eval()
        with torch.inference_mode():
            windows = torch.arange(cut, len(text) - length - 1, length)[: 16 * batch].split(batch)
            bits = statistics.mean(loss_of(starts).item() for starts in windows) / 0.6931471805599453
        found[spiking] = {"bits_per_byte": bits, "steps": steps}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--corpus-minutes", type=float, default=1.0)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.rehearse:
        summary = {"measured": "not measured: no GPU", "command": "python benchmarks/gpu.py"}
        write_result("gpu", summary)
        print(json.dumps(summary))
        return
    machine = Machine("cpu" if options.rehearse else "cuda", options.minutes)
    copy = copy_bandwidth(machine)
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if machine.is_gpu else "rehearsal on the CPU",
        "cuda": torch.version.cuda,
        "shape": SHAPE,
        "copy_bytes_per_s": copy,
        "tests": run_tests(machine),
    }
    sections: dict[str, Callable[[], Any]] = {
        "kernels": lambda: measure_kernels(machine, copy),
        "packed": lambda: measure_packed(machine),
        "against": lambda: measure_against_others(machine),
        "wkv7": lambda: measure_wkv7(machine),
        "event_wkv7": lambda: measure_event_wkv7(machine),
        "event_matvec": lambda: measure_event_matvec(machine),
        "decoding": lambda: measure_decoding(machine),
        "corpus": lambda: train_on_corpus(machine, options.corpus, options.corpus_minutes),
        "training": lambda: measure_training(machine),
    }
    for name, section in sections.items():
        result[name] = section() if machine.left_s() > 30 else "not measured: out of time"
        print(name, json.dumps(result[name], indent=1), flush=True)
        if machine.is_gpu:
            # after every section, so that what was measured is kept if a later one fails
            write_result("gpu", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
