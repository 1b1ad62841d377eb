"""How much memory a process takes to make a model of which it holds a share: 1.5 billion parameters in two processes.

    python benchmarks/shard_memory.py               24 layers of 2048, vocabulary 50,277: some minutes, 10 GB of memory
    python benchmarks/shard_memory.py --quick       a model of 30M, no published number

Linux only. Making it is all that stands before the first step: dividing, drawing every weight, setting the thresholds
by a forward pass, within which the largest module (the embedding, the head) is there twice: as it comes, and put
together. Once with glibc's allocator as it is, which keeps freed pieces of less than 32 MB, and once so that it
gives back whatever is larger than 1 MB. Writes results/shard_memory.json. Last line: JSON with the peak of each process
above what it had, in bytes, over the float32 weights, and over its share of them.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from measure import write_result

from spikegpt.config import ModelConfig
from spikegpt.model.network import parameters_of

SIZES = {"n_layer": 24, "n_embd": 2048, "vocab_size": 50277}
QUICK = {"n_layer": 4, "n_embd": 512, "vocab_size": 16384}
PROCESSES, FLOAT32 = 2, 4
ALLOCATORS = {"as it is": {}, "gives back": {"MALLOC_MMAP_THRESHOLD_": str(2**20)}}


def peak() -> int:
    """The most memory that this process has had, in bytes (getrusage would begin with its parent's)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def make_share(config: ModelConfig) -> None:
    """In one of the processes: make the model and print what that took."""
    import torch
    from accelerate import Accelerator

    from spikegpt.common.shards import whole
    from spikegpt.train.sharding import make_sharded

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    # what the first forward pass of all brings in is not the model's
    make_sharded(ModelConfig(n_layer=1, n_embd=16, vocab_size=16), None, None, accelerator)
    before, began = peak(), time.perf_counter()
    torch.manual_seed(0)
    model = make_sharded(config, None, None, accelerator)
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    taken = peak() - before
    is_drawn = all(bool(torch.isfinite(whole(part.ln1.weight)).all()) for part in model.blocks)
    print(json.dumps({"held": held, "bytes": taken, "seconds": time.perf_counter() - began, "is_drawn": is_drawn}))
    accelerator.end_training()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    config = ModelConfig(**(QUICK if options.quick else SIZES))
    if "RANK" in os.environ:
        return make_share(config)
    parameters, share = parameters_of(config), FLOAT32 * parameters_of(config) / PROCESSES
    summary = {"parameters": parameters, "whole_bytes": FLOAT32 * parameters, "share_bytes": share, "peaks": {}}
    for name, allocator in ALLOCATORS.items():
        found = in_all_processes(allocator)
        print(
            f"of {parameters:,} parameters the processes hold {' and '.join(format(one['held'], ',') for one in found)}"
        )
        summary["peaks"][name] = {
            "bytes": [one["bytes"] for one in found],
            "over_whole": [round(one["bytes"] / (FLOAT32 * parameters), 3) for one in found],
            "over_share": [round(one["bytes"] / share, 3) for one in found],
            "seconds": [round(one["seconds"]) for one in found],
        }
    if not options.quick:
        write_result("shard_memory", {**SIZES, **summary})
    print(json.dumps(summary))


def in_all_processes(environment: dict[str, str]) -> list[dict]:
    """Return what each process says of making its share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), **environment}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)} for rank in range(PROCESSES)]
    children = [
        subprocess.Popen([sys.executable, *sys.argv], stdout=subprocess.PIPE, text=True, env=os.environ | place | rank)
        for rank in ranks
    ]
    said = [child.communicate()[0].splitlines() for child in children]
    if any(child.returncode for child in children):
        sys.exit("a process failed")
    return [json.loads(lines[-1]) for lines in said]


if __name__ == "__main__":
    main()
