"""What counting costs: a forward pass of `small` with and without OpCounter, alternating, and the memory that stays.

    python benchmarks/count_cost.py [--threads 2] [--quick]

Both passes read 8 x 512 tokens in inference mode; prefill in one call, decoding token by token. The memory is what is
still held after many calls beyond what was held half-way, in tensors and in Python objects, per token, less the same of
the plain model.
Last line: JSON with counting_over_plain and bytes_per_token.
"""

import argparse
import contextlib
import gc
import json
import tracemalloc

import torch
from measure import alternate, ratio, write_result

from neuromorphic import OpCounter
from spikegpt.config import SPIKING, model_preset
from spikegpt.model.network import SpikeGPT


def trained_like(spiking: str) -> SpikeGPT:
    """`small` with matrices as dense as after a training; RWKV's initialisation has zeros, which cost less to count."""
    torch.manual_seed(0)
    model = SpikeGPT(model_preset("small", spiking=spiking)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def overhead(model: SpikeGPT, ids: torch.Tensor, repetitions: int) -> dict:
    """Return the ratio of a counted to a plain pass: one call on a text, or 16 on one token each."""
    is_decode = ids.shape[1] == 1
    state = model(ids).state if is_decode else None
    counter = OpCounter(model, strict=True)

    def plain() -> None:
        for _ in range(16 if is_decode else 1):
            model(ids, state)

    def counted() -> None:
        with counter:
            plain()

    return ratio(*alternate({"counted": counted, "plain": plain}, repetitions, warmup=3).values())


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
    torch.set_num_threads(options.threads)
    repetitions = 5 if options.quick else options.repetitions
    result = {"preset": "small", "batch": 8, "tokens": 512}
    for spiking in SPIKING:
        model = trained_like(spiking)
        ids = torch.randint(0, model.config.vocab_size, (8, 512))
        result[spiking] = {
            "prefill": overhead(model, ids, repetitions),
            "decode": overhead(model, ids[:1, :1], repetitions),
        }
        print(f"{spiking}: counted pass / plain pass {result[spiking]}")
    tracemalloc.start()
    kept = bytes_kept_per_token(model, ids[:, :128], 80)
    tracemalloc.stop()
    result["bytes_kept_per_token"] = {name: round(value, 4) for name, value in kept.items()}
    result["bytes_per_token"] = result["bytes_kept_per_token"]["difference"]
    result["counting_over_plain"] = max(result[spiking]["prefill"]["median"] for spiking in SPIKING)
    print(f"bytes kept per token: {result['bytes_kept_per_token']}")
    if not options.quick:
        write_result("count_cost", result)
    print(json.dumps({key: result[key] for key in ("counting_over_plain", "bytes_per_token")}))


if __name__ == "__main__":
    main()
