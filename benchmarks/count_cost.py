"""What counting costs: a forward pass of `small` with and without OpCounter, alternating, and memory.

    python benchmarks/count_cost.py [--threads 2] [--quick]

Both passes read 8 x 512 tokens in one call, or 64 tokens one by one, in inference mode. The memory is what is still
held after many calls beyond what was held half-way, in tensors and in Python objects, per token, less the same of the
plain model; and what the process needs at most for a causal attention over 8,192 tokens, counted and plain, each in a
process of its own.
Last line: JSON with decode_over_plain (within the counter), decode_counted_afterwards_over_plain (by count_decoding)
and forward_over_plain, each of the block where it is largest, bytes_per_token and attention_mib.
"""

import argparse
import contextlib
import gc
import json
import multiprocessing
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from measure import alternate, ratio, wait_as_command_line, write_result

from neuromorphic import OpCounter
from spikegpt.config import SPIKING, model_preset
from spikegpt.measure.decoding import count_decoding
from spikegpt.model.network import SpikeGPT

DECODED, ATTENDED = 64, 8192


# as a model is loaded, whose weights know that they were written to
@torch.inference_mode(False)
def trained_like(spiking: str) -> SpikeGPT:
    """`small` with matrices as dense as after a training; RWKV's initialisation has zeros, which cost less to count."""
    torch.manual_seed(0)
    model = SpikeGPT(model_preset("small", spiking=spiking)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def overhead(model: SpikeGPT, ids: torch.Tensor, repetitions: int) -> dict:
    """Return the ratio of a counted to a plain pass: one call on a text, or 64 on one token each."""
    is_decode = ids.shape[1] == 1
    state = model(ids).state if is_decode else None
    counter = OpCounter(model, strict=True)

    def plain() -> None:
        for _ in range(DECODED if is_decode else 1):
            model(ids, state)

    def counted() -> None:
        with counter:
            plain()

    return ratio(*alternate({"counted": counted, "plain": plain}, repetitions, warmup=3).values())


def overhead_afterwards(model: SpikeGPT, ids: torch.Tensor, repetitions: int) -> dict:
    """Return the ratio of decoding `ids` (1, T) and counting it afterwards to decoding it."""
    begun = model(ids[:, :1]).state

    def plain() -> None:
        state = begun
        for t in range(1, ids.shape[1]):
            state = model(ids[:, t : t + 1], state).state

    def counted() -> None:
        plain()
        count_decoding(model, ids[:, 1:], begun)

    return ratio(*alternate({"counted": counted, "plain": plain}, repetitions, warmup=1).values())


def bytes_kept_per_token(model: SpikeGPT, ids: torch.Tensor, calls: int) -> dict:
    """Return the growth of memory over the last half of `calls`, in bytes per token: counted, plain, the difference.

    The plain growth is torch's and Python's own, whose caches fill for a while.
    """
    growth = {}
    for name, context in (("plain", contextlib.nullcontext()), ("counted", OpCounter(model))):
        with context:
            for call in range(calls):
                if call == calls // 2:
                    before = held_bytes()
                model(ids)
            growth[name] = (held_bytes() - before) / ((calls - calls // 2) * ids.numel())
    return {**growth, "difference": growth["counted"] - growth["plain"]}


def attention_mib(is_counted: bool) -> float:
    """Return the largest memory of a process that attends over ATTENDED tokens, beyond what it had before, in MiB."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_attend, is_counted).result()


def _attend(is_counted: bool) -> float:
    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    model, context = Attention(), contextlib.nullcontext()
    if is_counted:
        context = OpCounter(model, strict=True)
        with context:
            model(*torch.randn(3, 1, 4, 16, 64))
    operands = torch.randn(3, 1, 4, ATTENDED, 64)
    # Linux forgets the largest size so far
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    with torch.no_grad(), context:
        model(*operands)
    return _peak_mib() - before


def _peak_mib() -> float:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM")) / 1024


def held_bytes() -> int:
    gc.collect()
    storages = {
        thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
        for thing in gc.get_objects()
        if type(thing) is torch.Tensor
    }
    return tracemalloc.get_traced_memory()[0] + sum(storages.values())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="5 repetitions")
    options = parser.parse_args()
    wait_as_command_line()
    torch.set_num_threads(options.threads)
    repetitions = 5 if options.quick else options.repetitions
    result = {"preset": "small", "batch": 8, "tokens": 512}
    for spiking in SPIKING:
        model = trained_like(spiking)
        ids = torch.randint(0, model.config.vocab_size, (8, 512))
        result[spiking] = {
            "prefill": overhead(model, ids, repetitions),
            "decode": overhead(model, ids[:1, :1], repetitions),
            "decode_counted_afterwards": overhead_afterwards(model, ids[:1, :257], repetitions),
        }
        print(f"{spiking}: counted pass / plain pass {result[spiking]}")
    tracemalloc.start()
    kept = bytes_kept_per_token(model, ids[:, :128], 80)
    tracemalloc.stop()
    result["bytes_kept_per_token"] = {name: round(value, 4) for name, value in kept.items()}
    result["bytes_per_token"] = result["bytes_kept_per_token"]["difference"]
    phases = {
        "decode_over_plain": "decode",
        "decode_counted_afterwards_over_plain": "decode_counted_afterwards",
        "forward_over_plain": "prefill",
    }
    for name, phase in phases.items():
        result[name] = max(result[spiking][phase]["median"] for spiking in SPIKING)
    result["attention_mib"] = {"tokens": ATTENDED, "counted": attention_mib(True), "plain": attention_mib(False)}
    print(f"bytes kept per token: {result['bytes_kept_per_token']}")
    if not options.quick:
        write_result("count_cost", result)
    print(json.dumps({key: result[key] for key in (*phases, "bytes_per_token", "attention_mib")}))


if __name__ == "__main__":
    main()
