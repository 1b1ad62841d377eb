"""Quality against sparsity: the spike-driven block at several budgets of synaptic operations, and its dense twin.

    python benchmarks/tradeoff.py --data FOLDER_OR_FILES   4 layers, width 192, 2,000 steps of 16 x 128: about 4 hours
    python benchmarks/tradeoff.py --quick   a minute, the built-in corpus, three tiny runs, no published number

Each side is trained at each of LEARNING_RATES with seed 0 and the best rate is kept. The spike-driven side is then
taught by its dense twin of the same seed (--teacher), with three seeds and at several budgets; the untaught run says
what that is worth. Trainings are single-threaded, `--side-by-side` of them at once; what exists is resumed.
Bits and firing are of the whole valid split, read once with carried state. Writes results/tradeoff.json and
tradeoff.png. Last line: JSON with the points (firing, synops_per_token, bits, twin_bits) and the gap of the three
seeds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from measure import write_result

from spikegpt.checkpoint.weights import load_model
from spikegpt.data.prepare import prepare
from spikegpt.evaluate.perplexity import evaluate_stream

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LEARNING_RATES = {"none": (3e-3, 4e-3, 6e-3, 9e-3), "input": (4e-3, 6e-3)}
SEEDS = (0, 1, 2)
BLOCKS = ("none", "input")
# a little below 0.25, because the budget is reached from above
COMPARED_BUDGET = 0.245
BUDGETS = (0.05, 0.10, 0.20, COMPARED_BUDGET, 0.40)


@dataclass(frozen=True)
class Job:
    """One training."""

    spiking: str
    lr: float
    seed: int
    budget: float = COMPARED_BUDGET
    teacher: "Job | None" = None

    @property
    def name(self) -> str:
        budget = f"-budget{self.budget:g}" if self.spiking != "none" else ""
        return f"{self.spiking}-lr{self.lr:g}-seed{self.seed}{budget}{'-taught' if self.teacher else ''}"


def train(job: Job, options) -> None:
    run = options.runs / job.name
    if (run / "checkpoints" / f"step-{options.steps:08d}").exists():
        return
    command = [sys.executable, "-m", "spikegpt", "train"]
    if (run / "config.json").exists():
        command += ["--resume", str(run)]
    else:
        command += [
            "--out",
            str(run),
            "--data",
            *options.data,
            "--spiking",
            job.spiking,
            "--dropout",
            "0",
            "--threads",
            "1",
            # one for all that are compared
            "--precision",
            "no",
        ]
        command += ["--n-layer", str(options.layers), "--n-embd", str(options.width), "--ctx-len", str(options.ctx_len)]
        command += [
            "--steps",
            str(options.steps),
            "--batch-size",
            str(options.batch_size),
            "--lr",
            str(job.lr),
            "--seed",
            str(job.seed),
        ]
        command += [
            "--synop-budget",
            str(job.budget),
            "--eval-every",
            "500",
            "--save-every",
            "500",
            "--sample-every",
            "0",
        ]
        command += ["--teacher", str(options.runs / job.teacher.name)] if job.teacher else []
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(options.runs / f"{job.name}.log", "a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def evaluate(job: Job, options) -> dict:
    kept = options.runs / f"{job.name}.json"
    if not kept.exists():
        model, tokenizer = load_model(options.runs / job.name)
        valid = np.asarray(prepare(options.data, tokenizer).split("valid"))[: options.eval_tokens]
        result = evaluate_stream(model, valid, tokenizer).to_dict()
        facts = {
            "spiking": job.spiking,
            "lr": job.lr,
            "seed": job.seed,
            "budget": job.budget,
            "teacher": job.teacher and job.teacher.name,
        }
        kept.write_text(
            json.dumps({**facts, "parameters": model.count_parameters(), "dense_ops": dense_ops(model), **result})
        )
    return json.loads(kept.read_text())


def dense_ops(model) -> int:
    """Weights of the matrix products of the blocks: what the twin multiplies for every token."""
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "head"
    )


def run_all(jobs: list[Job], options) -> dict[Job, dict]:
    # the same training may be asked for twice, as a seed and as a point of the curve
    jobs = list(dict.fromkeys(jobs))
    with ThreadPoolExecutor(options.side_by_side) as pool:
        list(pool.map(lambda job: train(job, options), jobs))
    return {job: evaluate(job, options) for job in jobs}


def draw(points: list[dict], twin: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    synops = np.array([point["synops_per_token"] for point in points]) / 1e3
    bits = np.array([point["bits"] for point in points])
    axes.plot(synops, bits, "o-", color="C0", label="spike-driven block")
    for x, y, point in zip(synops, bits, points, strict=True):
        axes.annotate(f"{point['firing']:.0%} firing", (x, y), textcoords="offset points", xytext=(6, 6), fontsize=9)
    axes.plot(
        [twin["dense_ops"] / 1e3],
        [twin["bits"]],
        "s",
        color="C7",
        label="dense twin of the same seed (multiply-accumulates)",
    )
    axes.axhline(twin["bits"], color="C7", linewidth=0.8)
    axes.axhline(1.05 * twin["bits"], color="C7", linewidth=0.8, linestyle=":", label="dense twin + 5 %")
    axes.set(xlim=(0, 1.05 * twin["dense_ops"] / 1e3), ylabel="bits per byte, valid split")
    axes.set_xlabel("operations per token in the matrix products of the blocks (thousands)")
    axes.margins(y=0.1)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--runs", type=Path, default=Path("runs/tradeoff"))
    parser.add_argument("--side-by-side", type=int, default=2)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="points of the curve")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.layers, options.width, options.ctx_len, options.batch_size, options.steps, options.eval_tokens = (
        4,
        192,
        128,
        16,
        2000,
        None,
    )
    rates, seeds, budgets = LEARNING_RATES, SEEDS, options.budgets
    if options.quick:
        options.layers, options.width, options.ctx_len, options.steps, options.eval_tokens = 2, 48, 32, 60, 4096
        options.runs, rates, seeds, budgets = (
            Path(tempfile.mkdtemp()),
            dict.fromkeys(BLOCKS, (6e-3,)),
            (0,),
            (0.1, COMPARED_BUDGET),
        )

    first = {spiking: [Job(spiking, lr, 0) for lr in rates[spiking]] for spiking in BLOCKS}
    results = run_all([*first["none"], *first["input"]], options)
    twin_of_seed_0, untaught = (
        min(first[spiking], key=lambda job: results[job]["bits_per_byte"]) for spiking in BLOCKS
    )
    twins = [replace(twin_of_seed_0, seed=seed) for seed in seeds]
    results |= run_all(twins, options)
    taught = [replace(untaught, seed=twin.seed, teacher=twin) for twin in twins]
    curve = [replace(taught[0], budget=budget) for budget in budgets]
    results |= run_all([*taught, *curve], options)

    def bits(jobs: list[Job]) -> list[float]:
        return [results[job]["bits_per_byte"] for job in jobs]

    # the curve is one seed's, and so is the twin beside it
    twin = {"bits": bits(twins)[0], "dense_ops": results[twins[0]]["dense_ops"]}
    points = [
        {
            "budget": job.budget,
            "firing": results[job]["firing_rate"],
            "synops_per_token": results[job]["synops_per_token"],
            "bits": results[job]["bits_per_byte"],
            "twin_bits": twin["bits"],
        }
        for job in curve
    ]
    summary = {
        "points": points,
        "gap_by_seed": [ours / theirs - 1 for ours, theirs in zip(bits(taught), bits(twins), strict=True)],
        "gap": statistics.mean(bits(taught)) / statistics.mean(bits(twins)) - 1,
        "firing": statistics.mean(results[job]["firing_rate"] for job in taught),
        "gap_untaught": bits([untaught])[0] / bits(twins)[0] - 1,
    }
    if not options.quick:
        runs = [{"job": job.name, **found} for job, found in results.items()]
        corpus = Path(options.data[0]).name
        best_lr = {"none": twin_of_seed_0.lr, "input": untaught.lr}
        path = write_result(
            "tradeoff", {**summary, "corpus": corpus, "best_lr": best_lr, "dense_ops": twin["dense_ops"], "runs": runs}
        )
        draw(points, twin, path.with_suffix(".png"))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
