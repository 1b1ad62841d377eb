"""Where the time of a training step goes on this CPU, by part of the network, dense and spike-driven.

    python benchmarks/step_parts.py [--threads 1] [--steps 5] [--quick]

Models of 2.0M, 5.3M and 46M parameters, products in float32 and in bfloat16. torch's profiler says how long every
operator ran: those of the forward pass belong to the module that called them, those of the backward pass to the part
of the operator that they take back. Microseconds are those of the fastest of some steps, for a busy machine hits some
parts and not others; what Python does between operators is "Python and waiting". The profiler makes each operator
slower by about a microsecond: `unobserved` is the fastest step without it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from measure import write_result
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from train_step import TRAINING, autocast

from spikegpt.common.memory import pages_kept
from spikegpt.config import ModelConfig, model_preset
from spikegpt.model.network import SpikeGPT
from spikegpt.train.losses import Reading, add_up, make_terms
from spikegpt.train.optimizer import make_optimizer
from spikegpt.train.sampler import WindowSampler

# name -> (model, texts, tokens)
SIZES = {
    "2.0M": (model_preset("tiny", vocab_size=4096), 16, 128),
    "5.3M": (model_preset("small"), 8, 512),
    "46M": (model_preset("spikegpt-46m", spiking_head=False), 2, 256),
}
# part of a module's name -> part of the step; what operators of our own compute stands below
MODULES = {
    "emb": "embedding",
    "ln": "layer norms",
    "head": "head",
    "key": "products",
    "value": "products",
    "receptance": "products",
    "output": "products",
}
OPERATORS = {
    "token_shift": "token shift and its neurons",
    "shifted_lif": "token shift and its neurons",
    "integer_lif": "other neurons",
    "wkv": "WKV, gates and their neurons",
    "gate": "WKV, gates and their neurons",
    "squared_relu": "squared ReLU and its neurons",
    "dropout": "stream: sums, dropout, state",
}
STREAM, LOSS, WAITING = "stream: sums, dropout, state", "loss and budget", "Python and waiting"
STEP = "step"


def make_step(config: ModelConfig, batch: int, tokens: int, precision: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = SpikeGPT(config)
    optimizer = make_optimizer(model, TRAINING)
    terms = make_terms(TRAINING, model.synapses(), emits_spikes=config.spiking != "none")
    text = np.random.default_rng(0).integers(0, config.vocab_size, 1 << 20).astype(np.uint16)
    sampler = WindowSampler(text, tokens, batch, seed=0)
    for name, module in model.named_modules():
        part = next((part for key, part in MODULES.items() if name.rpartition(".")[2].startswith(key)), None)
        # neurons have no scope: a hook on them would take their kernel apart
        if part is not None and not name.endswith("neuron"):
            observe(module, part)

    def step() -> None:
        with record_function(STEP):
            with record_function("data"):
                ids, targets = sampler.next()
            with record_function(STREAM), autocast(precision):
                logits, _, spikes = model(ids)
            with record_function(LOSS):
                cross_entropy = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
                reading = Reading(TRAINING.steps, cross_entropy, logits, spikes, None)
                loss = add_up({term.name: term(reading) for term in terms})
            loss.backward()
            with record_function("clipping"):
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            with record_function("optimizer"):
                optimizer.step()
                optimizer.zero_grad()

    return step


def observe(module: nn.Module, part: str) -> None:
    """Let what `module` computes belong to `part` in a profile."""
    forward = module.forward

    def observed(*args):
        with record_function(part):
            return forward(*args)

    module.forward = observed


def parts_of(events: list[FunctionEvent]) -> dict[str, float]:
    """Return part -> microseconds of one step."""
    forward_part: dict[int, str] = {}
    parts: dict[str, float] = {}
    for event in events:
        if event.name == STEP:
            parts[WAITING] = parts.get(WAITING, 0) + event.self_cpu_time_total
            continue
        part, is_backward = place_of(event, forward_part)
        if not is_backward and event.sequence_nr >= 0:
            # operators that have no gradient bear the number of the next one that has
            forward_part[event.sequence_nr] = part
        name = f"{part}, backward" if is_backward else part
        parts[name] = parts.get(name, 0) + event.self_cpu_time_total
    return parts


def place_of(event: FunctionEvent, forward_part: dict[int, str]) -> tuple[str, bool]:
    """(part of an operator, whether it is of the backward pass); `forward_part` says whose a sequence number is."""
    callers = list(lineage(event))
    backward = next((caller for caller in callers if caller.name.startswith("autograd::engine")), None)
    for caller in callers:
        own = [part for name, part in OPERATORS.items() if "spikegpt" in caller.name and name in caller.name]
        if own:
            return own[0], backward is not None
    if backward is not None:
        return forward_part.get(backward.sequence_nr, STREAM), True
    scopes = {*MODULES.values(), STREAM, LOSS, "data", "clipping", "optimizer"}
    return next((caller.name for caller in callers if caller.name in scopes), WAITING), False


def lineage(event: FunctionEvent | None) -> Iterator[FunctionEvent]:
    while event is not None:
        yield event
        event = event.cpu_parent


def measured(step: Callable[[], None], steps: int) -> dict[str, int]:
    """Return part -> its microseconds in the fastest of some steps, and of how many the fastest unobserved one was."""
    for _ in range(2):
        step()
    seen, unobserved = [], []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        unobserved.append(time.perf_counter() - started)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step()
        seen.append(parts_of(sorted(profiler.events(), key=lambda event: event.time_range.start)))
    fastest = min(seen, key=lambda parts: sum(parts.values()))
    whole = {"observed": sum(fastest.values()), "unobserved": 1e6 * min(unobserved)}
    return {part: round(spent) for part, spent in (fastest | whole).items()}


def print_table(size: str, found: dict[str, dict[str, int]]) -> None:
    """Print a size's table: parts downwards, precisions and blocks across."""
    print(f"{size:38}" + "".join(f"{name:>22}" for name in found))
    for part in sorted({part for parts in found.values() for part in parts}):
        print(f"  {part:36}" + "".join(f"{parts.get(part, 0) / 1000:19.2f} ms" for parts in found.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the smallest model, 2 steps, no result written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = dict(list(SIZES.items())[:1]) if options.quick else SIZES
    table: dict[str, dict[str, dict[str, int]]] = {}
    for size, (config, batch, tokens) in sizes.items():
        for precision in ("float32", "bfloat16"):
            for spiking, block in (("none", "dense"), ("input", "spike-driven")):
                changed = ModelConfig.from_dict({**config.to_dict(), "spiking": spiking, "neuron": None})
                step = make_step(changed, batch, tokens, "bf16" if precision == "bfloat16" else "no")
                with pages_kept():
                    found = measured(step, 2 if options.quick else options.steps)
                table.setdefault(size, {})[f"{block} {precision}"] = found
        print_table(size, table[size])
    if not options.quick:
        tokens_of = {size: {"texts": batch, "tokens": tokens} for size, (_, batch, tokens) in SIZES.items()}
        write_result("step_parts", {"microseconds": table, "batches": tokens_of})
    whole = {size: {name: parts["unobserved"] for name, parts in found.items()} for size, found in table.items()}
    print(json.dumps(whole))


if __name__ == "__main__":
    main()
