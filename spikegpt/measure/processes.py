"""Whether a training on this CPU is faster in one process or in two of half the threads each, measured.

`python -m spikegpt.measure.processes THREADS RANK PORT` is one of the processes.
"""

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..config import model_preset, train_preset
from ..config.train import Precision
from ..model.network import SpikeGPT
from ..train.optimizer import make_optimizer
from ..train.precision import autocast, multiplies_bfloat16

PROCESSES, PRESET = 2, "tiny"
WARM_UP, ROUNDS = 3, 12
# two must be faster by this factor: they are a command more
WORTH = 1.1
PATIENCE_S = 120


def training() -> dict[str, str | int]:
    """Return how fast one process of all threads trains, how fast two, and which to start, in words."""
    threads = torch.get_num_threads()
    if threads < PROCESSES or not dist.is_available() or not dist.is_gloo_available():
        return {"start": f"one process, of {threads} thread(s): there is nothing to share out"}
    try:
        one, two = in_processes([sys.executable, "-m", __name__, str(threads)])
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"start": f"one process; two could not be tried: {error}"}
    launch = "accelerate launch --multi_gpu --num_processes 2 --num_cpu_threads_per_process"
    of_two = f"{launch} {threads // 2} -m spikegpt train --threads {threads // 2}, with half the --batch-size"
    return {
        f"tokens_per_s of one process, {threads} threads": one,
        f"tokens_per_s of two processes, {threads // 2} thread(s) each": two,
        "start": of_two if two >= WORTH * one else "spikegpt train, one process",
    }


def in_processes(command: list[str], patience_s: float = PATIENCE_S) -> Any:
    """Run `command` RANK PORT in PROCESSES processes, which meet there (`meet`); return the JSON that the first prints.

    Raises:
        RuntimeError: one of them failed; the message ends with what it said.
        subprocess.TimeoutExpired: they took longer than `patience_s`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as stack:
        started = []
        for rank in range(PROCESSES):
            own, pipe = [*command, str(rank), port], subprocess.PIPE
            started.append(stack.enter_context(subprocess.Popen(own, stdout=pipe, stderr=pipe, text=True)))
        for process in started:
            # none of them may wait for one that is gone
            stack.callback(process.kill)
        said = [process.communicate(timeout=patience_s) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"a training process ended with {process.returncode}: {errors[-500:]}")
    return json.loads(said[0][0].splitlines()[-1])


def meet(rank: int, port: int) -> None:
    """In one of the processes: wait for the others."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)


def make_step(
    preset: str, windows: int, wrap: Callable[[nn.Module], nn.Module], precision: Precision = "no"
) -> Callable[[], None]:
    """Return a training step of a new model of this size: forward, backward, clipping and the optimizer."""
    torch.manual_seed(0)
    bare = SpikeGPT(model_preset(preset))
    model, optimizer = wrap(bare), make_optimizer(bare, train_preset(preset))
    ids = torch.randint(0, bare.config.vocab_size, (windows, bare.config.ctx_len + 1))

    def step() -> None:
        with autocast(precision, bare.device):
            logits = model(ids[:, :-1]).logits
        F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _compare(threads: int, rank: int, port: int) -> None:
    """In one of the processes: print the tokens per second of one of them and of both, taking turns."""
    meet(rank, port)
    precision: Precision = "bf16" if multiplies_bfloat16(torch.device("cpu")) else "no"
    windows, is_first = train_preset(PRESET).batch_size, rank == 0
    # the other waits for it at the next barrier, asleep
    alone = make_step(PRESET, windows, lambda model: model, precision) if is_first else lambda: None
    # as the trainer has it
    wrap = partial(DistributedDataParallel, gradient_as_bucket_view=True)
    both = make_step(PRESET, windows // PROCESSES, wrap, precision)
    seconds: list[list[float]] = [[], []]
    for turn in range(WARM_UP + ROUNDS):
        for found, step, own in zip(seconds, (alone, both), (threads, threads // PROCESSES), strict=True):
            torch.set_num_threads(own)
            started = time.perf_counter()
            step()
            dist.barrier()
            if turn >= WARM_UP:
                found.append(time.perf_counter() - started)
    tokens = windows * model_preset(PRESET).ctx_len
    if is_first:
        print(json.dumps([round(tokens / statistics.median(found)) for found in seconds]))
    dist.destroy_process_group()


if __name__ == "__main__":
    _compare(*map(int, sys.argv[1:]))
