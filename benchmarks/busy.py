"""Training steps of the demo's model, alone and beside one and two programs that are always busy, by how threads wait.

    python benchmarks/busy.py [--threads 2] [--seconds 12] [--rounds 3] [--quick]

By default the threads of OpenMP spin where they meet, for milliseconds; passively they sleep; as the command line has
it they spin for microseconds and then sleep. Each policy holds for a whole process, so there is one of each, and they
measure in turn; the neighbours are `yes > /dev/null`. Last line: JSON with the median share that is left of the pace
that the command line has alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

from measure import write_result

from spikegpt.__main__ import WAITING

# how threads wait -> the environment that says so
POLICIES = {"command": WAITING, "passive": {"OMP_WAIT_POLICY": "passive"}, "default": {}}
NEIGHBOURS = (0, 1, 2)


def work(threads: int) -> None:
    """Measure as told: seconds come in on stdin, the tokens per second of each step in them go out."""
    import torch
    from torch.nn import functional as F

    from spikegpt.config import model_preset, train_preset
    from spikegpt.model.network import SpikeGPT
    from spikegpt.train.optimizer import make_optimizer

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, config = SpikeGPT(model_preset("tiny")), train_preset("tiny")
    optimizer, tokens = make_optimizer(model, config), config.batch_size * model.config.ctx_len
    ids = torch.randint(0, model.config.vocab_size, (config.batch_size, model.config.ctx_len + 1))

    def step() -> float:
        started = time.perf_counter()
        F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return tokens / (time.perf_counter() - started)

    step()
    print("ready", flush=True)
    for seconds in map(float, sys.stdin):
        ends, speeds = time.perf_counter() + seconds, [step()]
        while time.perf_counter() < ends:
            speeds.append(step())
        print(json.dumps(speeds), flush=True)


@contextmanager
def worker(policy: str, threads: int):
    """A process whose threads wait by `policy`; it sleeps until it is asked to measure for so many seconds."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | POLICIES[policy]
    command = [sys.executable, __file__, "--worker", "--threads", str(threads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()

        def measure(seconds: float) -> list[float]:
            print(seconds, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield measure
        process.stdin.close()


@contextmanager
def neighbours(number: int):
    """So many programs that are always busy."""
    with open(os.devnull, "w") as nowhere:
        busy = [subprocess.Popen(["yes"], stdout=nowhere) for _ in range(number)]
        try:
            yield
        finally:
            for process in busy:
                process.kill()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=12, help="of each measurement, and a step more")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 2 seconds")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.threads)
    seconds, rounds = (2.0, 1) if options.quick else (options.seconds, options.rounds)
    # (policy, neighbours) -> tokens per second, the median of each round
    found: dict[tuple[str, int], list[float]] = {(p, n): [] for n in NEIGHBOURS for p in POLICIES}
    with ExitStack() as stack:
        measure = {policy: stack.enter_context(worker(policy, options.threads)) for policy in POLICIES}
        for _ in range(rounds):
            for policy, number in found:
                with neighbours(number):
                    found[policy, number].append(statistics.median(measure[policy](seconds)))
    alone = statistics.median(found["command", 0])
    table = [
        {
            "waiting": policy,
            "neighbours": number,
            "tokens_per_s": round(statistics.median(speeds)),
            "from_to": [round(min(speeds)), round(max(speeds))],
            "share_of_command_alone": round(statistics.median(speeds) / alone, 3),
        }
        for (policy, number), speeds in found.items()
    ]
    for row in table:
        print(*row.values(), sep="  ")
    if not options.quick:
        about = {"preset": "tiny", "threads_used": options.threads, "seconds": seconds, "rounds": rounds}
        write_result("busy", {"table": table, **about})
    print(json.dumps({f"{row['waiting']}_{row['neighbours']}": row["share_of_command_alone"] for row in table}))


if __name__ == "__main__":
    main()
