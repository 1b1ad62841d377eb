"""What is installed, which kernels run where, whether they are right and how fast they are."""

import importlib.metadata
import itertools
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from ..common.devices import available_devices, find_device, finish
from ..common.version import __version__
from ..config import model_preset
from ..generate.engine import GATHERED_TEXTS, SHARED_WEIGHTS, Engine
from ..kernels import event_matvec, event_wkv, event_wkv7, integer_lif, lif, wkv, wkv6, wkv7
from ..kernels.backends import kernel_for
from ..kernels.gpu import installed_cupy
from ..model.network import SpikeGPT
from .processes import training

PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "safetensors",
    "tokenizers",
    "accelerate",
    "tyro",
    "matplotlib",
    "tensorboard",
    "snntorch",
    "spikingjelly",
)
SHAPE = (4, 256, 512)
# channels of a head of `wkv6`, `wkv7` and `event_wkv7`
HEAD_SIZE = 64
DECODED = 32
# texts at once whose sharing among threads is shown beside that of one
SEVERAL = 8
# float32 against float64: what the tests of the kernels allow
TOLERANCE = 1e-4


def examine() -> dict[str, Any]:
    """Return the report of `spikegpt doctor` as plain values; `healthy` is false if a kernel gives wrong numbers."""
    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    devices |= {name: torch.cuda.get_device_name(name) for name in available_devices() if name != "cpu"}
    examined = {
        device: _examine_all(device) for device in ("cpu", "cuda") if device == "cpu" or torch.cuda.is_available()
    }
    return {
        "spikegpt": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES} | (installed_cupy() or {"cupy": _version("cupy")}),
        "devices": devices,
        "kernels": {device: kernel_for(device) for device in ("cpu", "cuda")},
        f"checked at (B, T, C) = {SHAPE}, forward and backward": examined,
        "decoding": decoding(),
        "training": training(),
        "healthy": all(kernel["is_right"] for kernels in examined.values() for kernel in kernels.values()),
    }


def _examine_all(device: str) -> dict[str, dict[str, Any]]:
    return {
        name: _examine(make, run, device)
        for name, (make, run) in KERNELS.items()
        # on a CPU it is a part of the engine's token, and has no fast version of its own
        if device == "cuda" or name != "event_matvec"
    }


def decoding() -> dict[str, Any]:
    """Return how texts are decoded here, and how fast one text is: a new `small` model and its dense twin."""
    small, twin = (_new_engine("small", spiking) for spiking in ("input", "none"))
    speed, speed_of_twin = _tokens_per_s(small), _tokens_per_s(twin)
    density, large = small.density(), _new_engine("spikegpt-46m", "input")
    where = f"up to {GATHERED_TEXTS / density:.0f} texts at once at this firing" if small.by_rows else "nowhere"
    threads = {
        "one text, small": threads_for(small, 1),
        "one text, dense twin": threads_for(twin, 1),
        f"{SEVERAL} texts, small": threads_for(small, SEVERAL),
        "one text, spikegpt-46m": threads_for(large, 1),
        f"{SEVERAL} texts, spikegpt-46m": threads_for(large, SEVERAL),
    }
    return {
        "by rows that fired": where,
        "beyond that": "one dense pass over all texts",
        "share of the weights read": round(density, 3),
        "tokens_per_s spike-driven": speed,
        "tokens_per_s dense twin": speed_of_twin,
        "threads": threads,
    }


def _new_engine(size: str, spiking: str) -> Engine:
    torch.manual_seed(0)
    return Engine(SpikeGPT(model_preset(size, spiking=spiking)).eval())


def _start(engine: Engine, texts: int) -> None:
    with torch.inference_mode():
        engine.start(engine.model(torch.zeros(texts, 1, dtype=torch.long)).state)


def _tokens_per_s(engine: Engine) -> int:
    _start(engine, 1)
    tokens = torch.arange(DECODED).unsqueeze(1)
    return round(DECODED / _seconds(lambda: [engine.step(token) for token in tokens]))


def threads_for(engine: Engine, texts: int) -> str:
    """Return how many threads `engine` takes for so many texts and why, in words; decodes until that is chosen."""
    _start(engine, texts)
    tried = engine.sharings()
    for number in itertools.count():
        engine.step((torch.arange(texts) + number) % engine.model.config.vocab_size)
        chosen = engine.sharings()
        if len(chosen) <= 1:
            break
    if not chosen:
        return f"{torch.get_num_threads()}, as many as torch has, in the model's forward pass"
    if len(tried) > 1:
        return f"{chosen[0]}; the fastest of ({'), ('.join(tried)}) on the first tokens"
    if torch.get_num_threads() == 1:
        return f"{chosen[0]}; torch has no more"
    return f"{chosen[0]}; more are not tried for one text of fewer than {SHARED_WEIGHTS:,} weights"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _lif_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(2 * torch.randn(SHAPE, generator=generator)).to(dtype)]


def lif_of(inputs: list[torch.Tensor], backend: str) -> torch.Tensor:
    return lif(inputs[0], backend=backend)[0]


def integer_lif_of(inputs: list[torch.Tensor], backend: str) -> torch.Tensor:
    return integer_lif(inputs[0], membrane_decay=0.5, levels=4, signed=True, backend=backend)[0]


def _event_wkv_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    time_decay, time_first, key, value = _wkv_inputs(dtype)
    return [time_decay, time_first, key, value * (value.abs() > 1)]


def event_wkv_of(inputs: list[torch.Tensor], backend: str) -> torch.Tensor:
    time_decay, time_first, key, value = inputs
    return event_wkv(time_decay, time_first, key, value, backend=backend)[0]


def _wkv_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    C = SHAPE[-1]
    shapes = (C, C, SHAPE, SHAPE)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def wkv_of(inputs: list[torch.Tensor], backend: str) -> torch.Tensor:
    time_decay, time_first, key, value = inputs
    return wkv(time_decay, time_first, key, value, backend=backend)[0]


def _wkv6_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    B, T, C = SHAPE
    receptance, log_decay, key, value = torch.randn(4, B, T, C // HEAD_SIZE, HEAD_SIZE, generator=generator)
    time_first = torch.randn(C // HEAD_SIZE, HEAD_SIZE, generator=generator)
    tensors = receptance, -log_decay.exp(), key / HEAD_SIZE**0.5, value, time_first
    return [tensor.to(dtype) for tensor in tensors]


def wkv6_of(inputs: list[torch.Tensor], backend: str) -> torch.Tensor:
    receptance, log_decay, key, value, time_first = inputs
    return wkv6(receptance, log_decay, key, value, time_first, backend=backend)[0]


def _wkv7_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    B, T, C = SHAPE
    receptance, log_decay, key, value, rate = torch.randn(5, B, T, C // HEAD_SIZE, HEAD_SIZE, generator=generator)
    # as in the model: what is removed lies along a key of length 1, so that the state stays bounded
    key, rate = torch.nn.functional.normalize(key, dim=-1), rate.sigmoid()
    return [tensor.to(dtype) for tensor in (receptance, -log_decay.sigmoid(), key, value, -key, key * rate)]


def wkv7_of(inputs: list[torch.Tensor], backend: str) -> torch.Tensor:
    receptance, log_decay, key, value, a, b = inputs
    return wkv7(receptance, log_decay, key, value, a, b, backend=backend)[0]


def _event_wkv7_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    receptance, log_decay, key, value, a, b = _wkv7_inputs(dtype)
    is_event, is_read = (tensor.abs() > tensor.abs().mean() for tensor in (key, receptance))
    return [receptance * is_read, log_decay, key * is_event, value, a * is_event, b * is_event]


def event_wkv7_of(inputs: list[torch.Tensor], backend: str) -> torch.Tensor:
    # where gradients are asked for it is `wkv7`
    receptance, log_decay, key, value, a, b = (tensor.detach() for tensor in inputs)
    return event_wkv7(receptance, log_decay, key, value, a, b, backend=backend)[0]


def _event_matvec_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    B, T, C = SHAPE
    spikes = torch.randn(B * T, C, generator=generator).trunc()
    # weights are never float64
    return [spikes.to(dtype), torch.randn(C, C, generator=generator)]


def event_matvec_of(inputs: list[torch.Tensor], backend: str) -> torch.Tensor:
    spikes, weight = inputs
    return event_matvec(spikes.detach(), weight.detach(), backend=backend)


# operation with a kernel on a GPU -> its inputs in a dtype, and a call of it
KERNELS: dict[str, tuple[Callable, Callable]] = {
    "lif": (_lif_inputs, lif_of),
    "integer_lif": (_lif_inputs, integer_lif_of),
    "wkv": (_wkv_inputs, wkv_of),
    "event_wkv": (_event_wkv_inputs, event_wkv_of),
    "wkv6": (_wkv6_inputs, wkv6_of),
    "wkv7": (_wkv7_inputs, wkv7_of),
    "event_wkv7": (_event_wkv7_inputs, event_wkv7_of),
    "event_matvec": (_event_matvec_inputs, event_matvec_of),
}


def _examine(make: Callable, run: Callable, device: str) -> dict[str, Any]:
    """Compare the kernel that `auto` chooses with the float64 reference, and time it against the float32 reference."""

    def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
        return [tensor.to(device).requires_grad_() for tensor in make(dtype)]

    fast = _output_and_gradients(inputs(torch.float32), run, "auto")
    exact = _output_and_gradients(inputs(torch.float64), run, "reference")
    # a potential within rounding of the threshold may fire in one precision and not in the other:
    # one in 10,000 is allowed
    errors = [
        ((a.double() - b).abs() > TOLERANCE * b.abs().max()).double().mean().item()
        for a, b in zip(fast, exact, strict=True)
    ]
    seconds = {
        backend: _seconds(lambda b=backend: _output_and_gradients(inputs(torch.float32), run, b))
        for backend in ("auto", "reference")
    }
    tokens = SHAPE[0] * SHAPE[1]
    return {
        "is_right": max(errors) < 1e-4,
        "tokens_per_s": round(tokens / seconds["auto"]),
        "times_the_reference": round(seconds["reference"] / seconds["auto"], 1),
    }


def _output_and_gradients(inputs: list[torch.Tensor], run: Callable, backend: str) -> list[torch.Tensor]:
    output = run(inputs, backend)
    if not output.requires_grad:
        return [output]
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


def _seconds(function: Callable) -> float:
    """Best of three after one call to warm up."""
    device = find_device("auto")
    function()
    times = []
    for _ in range(3):
        finish(device)
        start = time.perf_counter()
        function()
        finish(device)
        times.append(time.perf_counter() - start)
    return min(times)
