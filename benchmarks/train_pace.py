"""The pace of `make demo`'s trainings against an earlier commit's: whole commands, in turn, on one machine.

    python benchmarks/train_pace.py f7666a2 [--steps 120] [--rounds 3] [--quick]

The earlier tree is checked out beside this one for the time of the measurement, and both run with this environment's
packages. A training's pace is that of its second half: the first compiles kernels and chooses threads. Last line: JSON
with how many times as fast this tree trains, by block.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ratio, write_result

TREE = Path(__file__).parent.parent
BLOCKS = ("input", "none", "output")
# how the demo's models learned when the earlier trees were written, as flags of this one
AS_EARLIER = (
    "--optimizer",
    "adamw",
    "--schedule",
    "cosine",
    "--lr",
    "3e-3",
    "--self-teacher",
    "0",
    "--commitment",
    "0",
)


def seconds_per_token(tree: Path, spiking: str, steps: int) -> float:
    """Train the demo's model for `steps` with the sources in `tree`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "spikegpt", "train", "--preset", "tiny", "--spiking", spiking]
        command += AS_EARLIER if tree == TREE else []
        command += ["--steps", str(steps), "--eval-every", "0", "--sample-every", "0", "--out", str(run)]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        paces = [record["tokens_per_s"] for record in records if record["kind"] == "train"]
        second_half = paces[len(paces) // 2 :]
        return sum(1 / pace for pace in second_half) / len(second_half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier one")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 40 steps, no result written")
    options = parser.parse_args()
    steps, rounds = (40, 2) if options.quick else (options.steps, options.rounds)
    found: dict[str, dict[str, list[float]]] = {block: {"earlier": [], "this": []} for block in BLOCKS}
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "tree"
        git = ["git", "-C", str(TREE), "worktree"]
        subprocess.run([*git, "add", "--detach", str(earlier), options.commit], check=True, capture_output=True)
        try:
            for _ in range(rounds):
                for block, times in found.items():
                    for name, tree in (("earlier", earlier), ("this", TREE)):
                        times[name].append(seconds_per_token(tree, block, steps))
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True, capture_output=True)
    speedups = {f"{block}_times_as_fast": ratio(times["earlier"], times["this"]) for block, times in found.items()}
    for block, times in found.items():
        pace = {name: round(1 / min(seconds)) for name, seconds in times.items()}
        print(f"{block:7} {pace['earlier']:7,} -> {pace['this']:7,} tokens/s, {speedups[f'{block}_times_as_fast']}")
    if not options.quick:
        write_result("train_pace", {"against": options.commit, "steps": steps, "rounds": rounds, "speedups": speedups})
    print(json.dumps({name: found["median"] for name, found in speedups.items()}))


if __name__ == "__main__":
    main()
