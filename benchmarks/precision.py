"""Train the same models in float32 and in bfloat16, seed by seed, and compare the bits per byte on the valid split.

    python benchmarks/precision.py --data TEXT [--steps 150] [--seeds 3] [--beside 2] [--quick]

0.9M parameters (`tiny`), dense and spike-driven, 16 x 128 tokens a step, one thread each, `--beside` trainings at once.
What is evaluated are the float32 weights of either. Last line: JSON with bf16 minus no, mean and spread over the seeds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from measure import write_result

PRECISIONS, BLOCKS = ("no", "bf16"), ("none", "input")


def train(run: Path, data: str, steps: int, spiking: str, seed: int, precision: str) -> float:
    """Return the bits per byte of the valid split after training into `run`."""
    command = [sys.executable, "-m", "spikegpt", "train", "--out", str(run), "--data", data, "--json"]
    options = {
        "spiking": spiking,
        "seed": seed,
        "precision": precision,
        "steps": steps,
        "eval-every": 0,
        "sample-every": 0,
        "eval-tokens": 65_536,
        "threads": 1,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *flags], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    bits = json.loads(done.stdout.splitlines()[-1])["valid"]["bits_per_byte"]
    print(f"{run.name}: {bits:.4f}", flush=True)
    return bits


def compared(bits: dict[str, list[float]]) -> dict:
    """Return what half precision adds to the bits per byte, seed by seed, and how far seeds are apart without it."""
    added = [half - whole for half, whole in zip(bits["bf16"], bits["no"], strict=True)]
    return {
        "bits_per_byte": bits,
        "bf16_minus_no": added,
        "mean": statistics.mean(added),
        "spread": statistics.stdev(added),
        "spread_of_seeds": statistics.stdev(bits["no"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="python-docs", help="a file or folder of text")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--beside", type=int, default=2, help="trainings at once")
    parser.add_argument("--quick", action="store_true", help="5 steps, 2 seeds")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds = 5, 2
    folder = Path(tempfile.mkdtemp())
    # both precisions of a seed one after the other, so that a run broken off has compared something
    jobs = list(product(range(options.seeds), BLOCKS, PRECISIONS))

    def run(job: tuple[int, str, str]) -> float:
        seed, spiking, precision = job
        name = f"{spiking}-{precision}-seed{seed}"
        return train(folder / name, options.data, options.steps, spiking, seed, precision)

    with ThreadPoolExecutor(options.beside) as pool:
        bits = dict(zip(jobs, pool.map(run, jobs), strict=True))
    blocks = {
        spiking: compared({kind: [bits[seed, spiking, kind] for seed in range(options.seeds)] for kind in PRECISIONS})
        for spiking in BLOCKS
    }
    if not options.quick:
        facts = {"corpus": Path(options.data).name, "steps": options.steps, "seeds": options.seeds, "preset": "tiny"}
        write_result("precision", {**facts, "blocks": blocks})
    summary = {name: {key: round(found[key], 4) for key in ("mean", "spread")} for name, found in blocks.items()}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
