"""Time a training step of two processes with one thread each against one process with two threads, on two cores.

    python benchmarks/train_processes.py [--quick]

At the sizes of `tiny` and `small`, the same windows in all: the processes take half each and average their gradients by
DDP over gloo, by torch's defaults and with each setting that could save work (no buffers are there to broadcast). A
step is forward, backward, clipping and the optimizer. Contenders in turn, in one run. Writes
results/train_processes.json. Last line: JSON with the pace of each over that of one process with two threads (above 1:
faster).
"""

import argparse
import json
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from measure import alternate, ratio, wait_as_command_line, write_result
from torch.nn.parallel import DistributedDataParallel

from spikegpt.config import train_preset
from spikegpt.measure.processes import PROCESSES, in_processes, make_step, meet

PRESETS = "tiny", "small"
SETTINGS = {
    "defaults": {},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "both": {"gradient_as_bucket_view": True, "static_graph": True},
}


def contenders(preset: str) -> dict[str, Callable[[], None]]:
    """In one of the processes: name -> a step that both enter and leave together."""
    windows = train_preset(preset).batch_size
    # the others wait for it at the next barrier, asleep
    alone = make_step(preset, windows, lambda model: model) if dist.get_rank() == 0 else lambda: None

    def with_threads(threads: int, step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            step()
            dist.barrier()

        return run

    found = {"one": with_threads(PROCESSES, alone)}
    for name, settings in SETTINGS.items():
        step = make_step(
            preset, windows // PROCESSES, lambda model, settings=settings: DistributedDataParallel(model, **settings)
        )
        found[name] = with_threads(1, step)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="3 repetitions of tiny")
    parser.add_argument("place", nargs="*", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.place:
        wait_as_command_line()
        found = in_processes([sys.executable, *sys.argv], patience_s=900)
        if not options.quick:
            write_result("train_processes", {"pace_over_one_process": found, "spiking": "input"})
        print(
            json.dumps(
                {preset: {name: one["median"] for name, one in ratios.items()} for preset, ratios in found.items()}
            )
        )
        return
    meet(*options.place)
    found = {}
    for preset in PRESETS[:1] if options.quick else PRESETS:
        times = alternate(contenders(preset), 3 if options.quick else options.repetitions, warmup=2)
        found[preset] = {name: ratio(times["one"], times[name]) for name in SETTINGS}
    # what the first of them prints counts
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
