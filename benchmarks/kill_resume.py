"""Kill a training run with SIGKILL at random moments, resume it each time, and compare the final weights byte for byte.

    python benchmarks/kill_resume.py [--kills 20] [--signals] [--precision bf16] [--quick]

One run is never broken; the other is killed `kills` times and resumed after each. With --signals every second signal is
SIGINT or SIGTERM, which may put off an evaluation or a sample, and has to end with 130 or 143. Last line: JSON with
resumed, killed, identical (the weights) and same_history (what metrics.jsonl, samples.txt and "best" say).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import write_result

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.common.files import sha256_of
from spikegpt.train.journal import read_metrics


def command(run: Path, steps: int, precision: str) -> list[str]:
    sizes = ["--n-layer", "2", "--n-embd", "32", "--ctx-len", "32", "--batch-size", "4"]
    intervals = [
        "--save-every",
        "5",
        "--eval-every",
        "40",
        "--eval-tokens",
        "2048",
        "--sample-every",
        "50",
        "--log-every",
        "10",
    ]
    return [
        sys.executable,
        "-m",
        "spikegpt",
        "train",
        "--out",
        str(run),
        "--steps",
        str(steps),
        "--threads",
        "1",
        "--precision",
        precision,
        *sizes,
        *intervals,
    ]


def continued(run: Path, steps: int, precision: str) -> list[str]:
    # a run killed before it wrote its configuration has nothing to resume
    if (run / "config.json").exists():
        return [sys.executable, "-m", "spikegpt", "train", "--resume", str(run)]
    return command(run, steps, precision)


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file)


def history(run: Path) -> list:
    """Return what a run says of its way, but not how long it took."""
    metrics = [(line["step"], line["kind"], line["bits_per_byte"]) for line in read_metrics(run)]
    best = json.loads((latest_checkpoint(run) / "training.json").read_text())["best"]
    return [metrics, best, (run / "samples.txt").read_text()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 kills of a run of 1,200 steps")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="of both runs")
    parser.add_argument("--signals", action="store_true", help="SIGINT and SIGTERM as well")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.steps = 3, 1200
    moments = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp())
    unbroken, broken, log = folder / "unbroken", folder / "broken", folder / "log.txt"

    began = time.monotonic()
    if start(command(unbroken, options.steps, options.precision), log).wait() != 0:
        sys.exit(f"the unbroken run failed, see {log}")
    length = time.monotonic() - began

    killed, steps_at_kill = 0, []
    while killed < options.kills:
        process = start(continued(broken, options.steps, options.precision), log)
        # from before the first import to well into the training;
        # short enough that the run is not done before the last kill
        delay = moments.uniform(0.4, 1.0) * (4 + 0.4 * length / options.kills)
        try:
            process.wait(timeout=delay)
            if process.returncode != 0:
                sys.exit(f"the broken run failed by itself, see {log}")
            sys.exit(f"the run was done after {killed} kills; give more --steps")
        except subprocess.TimeoutExpired:
            gently = options.signals and killed % 2 == 1
            number = moments.choice([signal.SIGINT, signal.SIGTERM]) if gently else signal.SIGKILL
            os.kill(process.pid, number)
            status = process.wait()
            if status == 0:
                sys.exit(f"the run was done after {killed} kills; give more --steps")
            if status != (128 + number if gently else -number):
                sys.exit(f"after {number.name} the status was {status}, see {log}")
            killed += 1
            newest = latest_checkpoint(broken)
            steps_at_kill.append(int(newest.name.split("-")[1]) if newest else 0)
    if start(continued(broken, options.steps, options.precision), log).wait() != 0:
        sys.exit(f"the last resume failed, see {log}")

    files = [latest_checkpoint(run) / "model.safetensors" for run in (unbroken, broken)]
    summary = {
        "resumed": killed,
        "killed": killed,
        "identical": sha256_of(files[0]) == sha256_of(files[1]),
        "same_history": history(unbroken) == history(broken),
    }
    if not options.quick:
        half = "" if options.precision == "no" else f"_{options.precision}"
        write_result(
            ("kill_resume_signals" if options.signals else "kill_resume") + half,
            {**summary, "steps": options.steps, "newest_checkpoint_at_each_kill": steps_at_kill, "seed": options.seed},
        )
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
