"""The part of gpu.py about RWKV-7's WKV, dense and by events: what the kernels err, and how fast they are."""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from kernels import chunked_wkv7, forward_backward
from measure import alternate, ratio
from torch.nn import functional as F

from spikegpt.kernels import event_wkv7, wkv7
from spikegpt.kernels.gpu import HEAD_SIZES

if TYPE_CHECKING:
    from gpu import Machine

HEAD_SIZE = 64
RESULTS = "output", "state", "receptance", "log_decay", "key", "value", "a", "b", "first state"
EVENT_RESULTS = "output", "matrix", "waiting"
EVENT_RATES = (0.05, 0.10, 0.20, 0.50, 1.0)


def wkv7_inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Return [receptance, log_decay, key, value, a, b], as in a model."""
    generator = torch.Generator(device).manual_seed(0)
    r, d, k, v, direction, rate = torch.randn(6, *shape, generator=generator, device=device)
    direction = F.normalize(direction, dim=-1)
    log_decay = -math.exp(-0.5) * torch.sigmoid(d)
    sequences = r, k / math.sqrt(shape[-1]), v, -direction, direction * torch.sigmoid(rate)
    r, *others = (x.to(dtype) for x in sequences)
    return [r, log_decay, *others]


def errors(machine: Machine, head_size: int, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest difference from the float64 reference, as a share of the largest entry, of each result."""
    inputs = wkv7_inputs((2, 257, 3, head_size), dtype, machine.device)
    inputs.append(torch.randn(2, 3, head_size, head_size, device=machine.device))
    sides = []
    for precision, backend in ((None, "auto"), (torch.float64, "reference")):
        leaves = [tensor.to(precision).requires_grad_() for tensor in inputs]
        results = wkv7(*leaves, backend=backend)
        sides.append([*results, *torch.autograd.grad(results, leaves, [torch.ones_like(x) for x in results])])
    return {
        name: ((ours - exact).abs().max() / exact.abs().max()).item()
        for name, ours, exact in zip(RESULTS, *sides, strict=True)
    }


def measure_wkv7(machine: Machine) -> dict[str, Any]:
    """Forward and backward: errors, and in float32 times in turn with torch's; a ratio above 1 says ours is faster."""
    found: dict[str, Any] = {"errors": {}}
    for head_size in HEAD_SIZES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            found["errors"][f"heads of {head_size}, {dtype}"] = errors(machine, head_size, dtype)
    shape = (8, 1024, 12, HEAD_SIZE) if machine.is_gpu else (1, 64, 2, HEAD_SIZE)
    inputs = [tensor.requires_grad_() for tensor in wkv7_inputs(shape, torch.float32, machine.device)]
    forms = {
        "ours": lambda *given: wkv7(*given)[0],
        "torch loop": lambda *given: wkv7(*given, backend="reference")[0],
        "chunked torch": chunked_wkv7,
    }
    grad = torch.ones_like(inputs[2])
    with torch.device(machine.device):
        contenders = {name: finished(machine, forward_backward(form, inputs, grad)) for name, form in forms.items()}
        times = alternate(contenders, 5 if machine.is_gpu else 2, warmup=2)
    found["shape"], found["ms"] = shape, {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    found |= {f"wkv7 / {name}": ratio(times[name], times["ours"]) for name in forms if name != "ours"}
    return found | {"wkv7 / flash-linear-attention": against_fla(machine, shape)}


def against_fla(machine: Machine, shape: tuple[int, int, int, int]) -> dict[str, Any] | str:
    """The same in bfloat16 beside the chunks of flash-linear-attention, which take no float32."""
    if not (importlib.util.find_spec("fla") and machine.is_gpu):
        return "not measured: fla is not installed"
    chunk_rwkv7 = importlib.import_module("fla.ops.rwkv7").chunk_rwkv7
    inputs = [tensor.requires_grad_() for tensor in wkv7_inputs(shape, torch.bfloat16, machine.device)]
    names = "r", "w", "k", "v", "a", "b"
    forms = {
        "ours": lambda *given: wkv7(*given)[0],
        "theirs": lambda *given: chunk_rwkv7(**dict(zip(names, given, strict=True)), scale=1.0)[0],
    }
    ours, theirs = (form(*inputs).float() for form in forms.values())
    error = ((ours - theirs).abs().max() / ours.abs().max()).item()
    if error > 0.05:
        return f"not measured: theirs differs from ours by {error:.2g} of the largest output"
    grad = torch.ones_like(inputs[2])
    contenders = {name: finished(machine, forward_backward(form, inputs, grad)) for name, form in forms.items()}
    times = alternate(contenders, 10, warmup=2)
    return {"ours_ms": 1e3 * statistics.median(times["ours"]), "ratio": ratio(times["theirs"], times["ours"])}


def at_events(inputs: list[torch.Tensor], rate: float) -> list[torch.Tensor]:
    """Return the inputs with receptance and key spiking at `rate`; where the key is silent a and b are too."""
    receptance, log_decay, key, value, a, b = inputs
    generator = torch.Generator(key.device).manual_seed(1)
    is_read, is_event = (torch.rand(key.shape, generator=generator, device=key.device) < rate for _ in range(2))
    # of length 1 again, as in a model
    length = (a * is_event).norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return [receptance * is_read, log_decay, key * is_event, value, a * is_event / length, b * is_event / length]


def measure_event_wkv7(machine: Machine) -> dict[str, Any]:
    """Forward, by firing rate: errors; times in turn with `wkv7` of the same inputs, of a text and of one token."""
    found: dict[str, Any] = {"errors": {}}
    for head_size in (*HEAD_SIZES, 48):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            inputs = at_events(wkv7_inputs((2, 257, 3, head_size), dtype, machine.device), 0.2)
            with torch.no_grad():
                sides = [
                    event_wkv7(*(x.to(precision) for x in inputs), backend=backend)
                    for precision, backend in ((None, "auto"), (torch.float64, "reference"))
                ]
            (ours, state), (wanted, last) = sides
            found["errors"][f"heads of {head_size}, {dtype}"] = {
                name: ((x - exact).abs().max() / exact.abs().max()).item()
                for name, x, exact in zip(EVENT_RESULTS, (ours, *state), (wanted, *last), strict=True)
            }
    B, T = (8, 1024) if machine.is_gpu else (1, 64)
    for tokens in (T, 1):
        dense = wkv7_inputs((B, tokens, 12, HEAD_SIZE), torch.bfloat16, machine.device)
        for rate in EVENT_RATES:
            inputs = at_events(dense, rate)
            forms = {"events": lambda given=inputs: event_wkv7(*given), "wkv7": lambda given=inputs: wkv7(*given)}
            with torch.no_grad():
                contenders = {name: finished(machine, form) for name, form in forms.items()}
                times = alternate(contenders, 20 if machine.is_gpu else 2, warmup=2)
            found[f"{B} texts of {tokens} tokens, rate {rate}"] = {
                "events_ms": 1e3 * statistics.median(times["events"]),
                "ratio": ratio(times["wkv7"], times["events"]),
            }
    return found


def finished(machine: Machine, run: Callable[[], Any]) -> Callable[[], Any]:
    """Return `run`, which then returns when the device has done it."""

    def run_to_the_end() -> Any:
        result = run()
        machine.finish()
        return result

    return run_to_the_end
