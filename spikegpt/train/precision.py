"""In which numbers a training multiplies: float32, or half of it (torch's autocast), asked for or the faster one.

Matrix products read and return half precision, and so do gates and squared ReLUs between them. Weights, their gradients
and the optimizer are float32, and so are norms, the inside of neurons and of the WKV, the residual stream, the loss,
and every state that is carried. Spikes are whole numbers up to 127, which bfloat16 holds exactly. Nothing is autocast
where a run is evaluated: its figures are those of the float32 weights.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from ..config.train import Precision
from ..model.network import SpikeGPT

if TYPE_CHECKING:
    from accelerate import Accelerator

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# what torch calls the instructions that multiply bfloat16, those of x86 and that of ARM
CPU_INSTRUCTIONS = "avx512_bf16", "amx_bf16", "bf16"
# times that a step is rehearsed with either precision, unless it has taken so long already
ROUNDS, ENOUGH_S = 5, 1.0
# bfloat16 must be faster by this factor, for it is less exact
WORTH = 1.05
# tokens of a rehearsed step, at most: enough for products as fast as in a whole one
REHEARSED = 512


class Choice(NamedTuple):
    """A precision, and how many times as fast as float32 bfloat16 was found to be; None if it was not measured."""

    precision: Precision
    speedup: float | None


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Return the context of a forward pass in `precision`; "auto", which chooses nothing by itself, is float32."""
    half = HALVES.get(precision)
    return nullcontext() if half is None else torch.autocast(device.type, half)


def agree_on_precision(
    model: SpikeGPT, batch_size: int, accelerator: "Accelerator", is_sharded: bool = False
) -> Choice:
    """Return, to all processes, what the main one chooses for steps of `model`, which is on the CPU still.

    A model that is divided among processes cannot be rehearsed by one: on CPUs it trains in float32.
    """
    from accelerate.utils import broadcast_object_list

    if is_sharded and accelerator.device.type == "cpu":
        return Choice("no", None)
    tokens = min(model.config.ctx_len, REHEARSED)
    texts = min(batch_size, REHEARSED // tokens)
    chosen: list[Any] = [None]
    if accelerator.is_main_process:
        chosen = [choose_precision(accelerator.device, partial(rehearse, model, texts, tokens))]
    return broadcast_object_list(chosen)[0]


def choose_precision(
    device: torch.device, work: Callable[[Precision], object], clock: Callable[[], float] = time.perf_counter
) -> Choice:
    """Return bf16 where `device` multiplies it and, if it is a CPU, does `work` clearly faster with it; else "no".

    The clock does not see the first call with either precision, which may have to compile.
    """
    if not multiplies_bfloat16(device):
        return Choice("no", None)
    if device.type == "cuda":
        return Choice("bf16", None)

    def timed(precision: Precision) -> float:
        started = clock()
        work(precision)
        return clock() - started

    work("no")
    work("bf16")
    began, whole_s, half_s = clock(), list[float](), list[float]()
    while not half_s or (len(half_s) < ROUNDS and clock() - began < ENOUGH_S):
        whole_s.append(timed("no"))
        half_s.append(timed("bf16"))
    # the shortest are those that other programs disturbed least
    speedup = min(whole_s) / min(half_s)
    return Choice("bf16" if speedup >= WORTH else "no", round(speedup, 2))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether `device` has instructions for it; elsewhere it is emulated, and slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # the first versions of torch that we run with cannot tell
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, Any])()
    return any(capabilities.get(name, False) for name in CPU_INSTRUCTIONS)


def rehearse(model: SpikeGPT, texts: int, tokens: int, precision: Precision) -> None:
    """Do the work of a micro step of ids (texts, tokens), forward and backward; nothing is changed by it."""
    ids = torch.zeros(texts, tokens, dtype=torch.long, device=model.device)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # what dropout draws here must not be missing later
    with torch.random.fork_rng(devices=[]), autocast(precision, model.device):
        logits = model(ids).logits
        cross_entropy = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
    torch.autograd.grad(cross_entropy, learned, allow_unused=True)
