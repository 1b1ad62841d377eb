"""The tax of spikes at equal total tokens, and what they gain at equal operations, against the best dense twin.

    python benchmarks/tax.py --data NOVELS                     2.0M, 2,000 steps of 16 x 128 (4M tokens), three seeds
    python benchmarks/tax.py --data NOVELS --steps 8000 --seeds 0     16M tokens
    python benchmarks/tax.py --data NOVELS --size small --pair        5.3M, 8,000 steps of 8 x 256: 16M tokens
    python benchmarks/tax.py --quick                           a minute, the built-in corpus, no published number

For each seed: the twin; a student that reads as many tokens in one run, taught by itself without its neurons
(`--self-teacher`), at COMPARED and SMALL of the dense products; and the finished twin with neurons, healed for
HEALED_SHARE more. For the first seed also students at other BUDGETS, one that nobody taught, one that begins as a dense
model of DENSE_SHARE of the steps and is healed for the rest, taught by what it began as (`spikegpt convert`), and twins
of NARROW widths, between which the bits of a dense model of as many operations are interpolated. With `--pair` the twin
and the student at COMPARED alone. One thread each, `--jobs` at once; what exists is kept, what was broken off goes on.

Bits and firing are of the whole valid split, read once with carried state; operations are products as built (zeros left
out, a spike of n as n accumulations), head included. Writes results/tax.json (tax_16m.json and so on for other numbers
of tokens) and a picture. Last line: JSON with dense_bits, tax, firing, tax_at_0.10, healing_tax, gain_equal_operations,
tokens and seeds.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import torch
from measure import commit, write_result
from sweep import Configuration, trained

from neuromorphic import OpCounter, Tally
from neuromorphic.report.measurement import layer_ops
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import HEALING as TAUGHT
from spikegpt.data.prepare import prepare
from spikegpt.evaluate.perplexity import evaluate_stream
from spikegpt.model.mixers.contract import NeuronFactory

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIZES = {
    "2.0M": {"n_layer": 4, "n_embd": 192, "ctx_len": 128, "batch_size": 16, "dropout": 0.0},
    "small": {"n_layer": 6, "n_embd": 256, "ctx_len": 256, "batch_size": 8, "dropout": 0.0},
    "quick": {"n_layer": 2, "n_embd": 48, "ctx_len": 32, "batch_size": 8, "dropout": 0.0},
}
# of the twin: all that a student and its teacher read
STEPS = {"2.0M": 2000, "small": 8000, "quick": 60}
# both sides', found by recipe.py; the rates fall in a straight line from the warm-up on
MUON = {"optimizer": "muon", "muon_lr": 0.03, "muon_momentum": 0.9, "schedule": "wsd", "decay_share": 0.97}
DENSE = {"spiking": "none", "lr": 4e-3, **MUON}
LEVELS = {"levels": 8, "hidden_levels": 16}
STUDENT = {"spiking": "input", "lr": 6e-3, "self_teacher": 1.0, "commitment": 1.0, **MUON, **LEVELS}
HEALING = {**LEVELS, **TAUGHT}
DENSE_SHARE, HEALED_SHARE = 0.7, 0.1
# shares of the dense products; a little below what is compared, for a budget is reached from above
COMPARED, SMALL = 0.19, 0.095
BUDGETS = (0.05, SMALL, COMPARED, 0.30)
NARROW = (96, 128)
SEEDS = (0, 1, 2)
COUNTED = 8192


def configurations(options, out: Path) -> list[dict[str, Configuration]]:
    """Return what is to be trained, in two stages: the second begins with models of the first."""
    always = {"data": options.data, "sample_every": 0, "eval_every": 0, "keep": 1}
    steps, first = options.steps, options.seeds[0]
    begun: dict[str, Configuration] = {}
    healed: dict[str, Configuration] = {}

    def shared(seed: int) -> Configuration:
        return {**options.sizes, **always, "seed": seed, "steps": steps}

    def heal(start: str, share: float, seed: int, budget: float, **changes) -> Configuration:
        teacher = str((out / start).absolute())
        taught = {"teacher": teacher, **HEALING}
        return {
            **{"from": teacher, "spiking": "input"},
            **always,
            **{"batch_size": options.sizes["batch_size"], "steps": round(share * steps), "seed": seed},
            **{"synop_budget": budget, **taught, **changes},
        }

    for seed in options.seeds:
        begun[f"twin-{seed}"] = {**shared(seed), **DENSE}
        if options.pair:
            begun[f"student-{seed}-{COMPARED}"] = {**shared(seed), **STUDENT, "synop_budget": COMPARED}
            continue
        for budget in BUDGETS if seed == first else (SMALL, COMPARED):
            begun[f"student-{seed}-{budget}"] = {**shared(seed), **STUDENT, "synop_budget": budget}
        healed[f"healed-{seed}"] = heal(f"twin-{seed}", HEALED_SHARE, seed, COMPARED)
    if options.pair:
        return [begun]
    for width in options.narrow:
        begun[f"narrow-{width}"] = {**shared(first), **DENSE, "n_embd": width}
    begun["untaught"] = {**shared(first), **STUDENT, "self_teacher": 0.0, "synop_budget": COMPARED}
    begun["start"] = {**shared(first), **DENSE, "steps": round(DENSE_SHARE * steps)}
    healed["converted"] = heal("start", 1 - DENSE_SHARE, first, COMPARED)
    return [begun, healed]


def evaluate(run: Path, data: list[str], neuron: NeuronFactory | None = None) -> dict:
    """Return width, bits, firing and `operations` of a run on the valid split; kept beside it.

    Args:
        neuron: makes the neurons of a run that was trained with others than ours.
    """
    torch.set_num_threads(1)
    # a name such as student-0-0.19 has no suffix that may be replaced
    kept = run.parent / f"{run.name}.valid.json"
    if not kept.exists():
        model, tokenizer = load_model(run, neuron)
        valid = np.asarray(prepare(data, tokenizer).split("valid"))
        found = evaluate_stream(model, valid, tokenizer)
        with OpCounter(model) as counter, counter.phase("prefill"):
            evaluate_stream(model, valid[:COUNTED], tokenizer)
        facts = {
            "bits": found.bits_per_byte,
            "firing": found.firing_rate,
            **operations(counter.tally()),
            "width": model.config.n_embd,
            "parameters": model.count_parameters(),
        }
        kept.write_text(json.dumps(facts))
    return json.loads(kept.read_text())


def operations(tally: Tally) -> dict[str, float]:
    """Return what a token costs as built: `macs` and `acs` of products, arithmetic on the `state`, and the rest."""
    layers, tokens = layer_ops(tally, "prefill", None), tally.token_count("prefill")
    others = {kind: sum(counts.elementwise.values()) / tokens for kind, counts in tally.by_kind("prefill").items()}
    state = sum(others.pop(kind, 0.0) for kind in ("scan", "state"))
    return {
        "macs": sum(layer.built_macs for layer in layers),
        "acs": sum(layer.built_acs for layer in layers),
        "state": state,
        "elementwise": sum(others.values()),
    }


def summarise(found: dict[str, dict], seeds: list[int]) -> dict:
    """Return what the runs come to; taxes are of the means over the seeds."""

    def mean(name: str, what: str = "bits") -> float:
        return statistics.mean(found[name.format(seed=seed)][what] for seed in seeds)

    twin, first = mean("twin-{seed}"), seeds[0]
    student = f"student-{{seed}}-{COMPARED}"
    by_seed = [found[student.format(seed=seed)]["bits"] / found[f"twin-{seed}"]["bits"] - 1 for seed in seeds]
    summary = {
        "dense_bits": twin,
        "tax": mean(student) / twin - 1,
        "tax_by_seed": by_seed,
        "firing": mean(student, "firing"),
    }
    if "untaught" not in found:
        return summary
    summary |= {
        "tax_at_0.10": mean(f"student-{{seed}}-{SMALL}") / twin - 1,
        "firing_at_0.10": mean(f"student-{{seed}}-{SMALL}", "firing"),
        "healing_tax": mean("healed-{seed}") / twin - 1,
        "healing_firing": mean("healed-{seed}", "firing"),
        "tax_untaught": found["untaught"]["bits"] / found[f"twin-{first}"]["bits"] - 1,
        "tax_converted": found["converted"]["bits"] / found[f"twin-{first}"]["bits"] - 1,
    }
    ours = found[student.format(seed=first)]
    summary["gain_equal_operations"] = 1 - ours["bits"] / dense_bits_at(ours["macs"] + ours["acs"], found, first)
    return summary


def dense_bits_at(operations: float, found: dict[str, dict], seed: int) -> float:
    """Return the bits of a dense model of so many operations per token, between (in logarithms) those trained."""
    names = [name for name in found if name.startswith("narrow-")] + [f"twin-{seed}"]
    points = sorted((np.log(found[name]["macs"] + found[name]["acs"]), found[name]["bits"]) for name in names)
    return float(np.interp(np.log(operations), *zip(*points, strict=True)))


def draw(found: dict[str, dict], seed: int, title: str, path: Path) -> None:
    """Bits against operations: the students of one seed by budget, the twin and the narrower ones."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")

    def curve(names: list[str], style: str, colour: str, label: str) -> None:
        points = sorted((found[name]["macs"] + found[name]["acs"], name) for name in names)
        x, y = [operations / 1e3 for operations, _ in points], [found[name]["bits"] for _, name in points]
        axes.plot(x, y, style, color=colour, label=label)
        for across, up, (_, name) in zip(x, y, points, strict=True):
            firing = found[name]["firing"]
            text = f"{firing:.0%} firing" if firing is not None else f"width {found[name]['width']}"
            axes.annotate(text, (across, up), textcoords="offset points", xytext=(6, 6), fontsize=9)

    students = [name for name in found if name.startswith(f"student-{seed}-")]
    curve(students, "o-", "C0", "spike-driven, its own teacher")
    dense = [name for name in found if name.startswith("narrow-")] + [f"twin-{seed}"]
    curve(dense, "s-", "C7", "dense, as many tokens")
    twin = found[f"twin-{seed}"]["bits"]
    axes.axhline(1.03 * twin, color="C7", linewidth=0.8, linestyle=":", label="the twin + 3 %")
    # room for the words at the last point
    right = 1.15 * max(facts["macs"] + facts["acs"] for facts in found.values()) / 1e3
    axes.set(ylabel="bits per byte, valid split", title=title, xlim=(0, right))
    axes.set_xlabel("operations per token in matrix products as built (thousands)")
    axes.margins(y=0.1)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--size", choices=SIZES, default="2.0M")
    parser.add_argument("--steps", type=int, help="of the twin: all that a student and its teacher read")
    parser.add_argument("--pair", action="store_true", help="the twin and one student for each seed, nothing else")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--runs", type=Path, help="by default runs/tax-STEPS, of another size runs/tax-SIZE-STEPS")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.narrow = NARROW
    if options.quick:
        options.size, options.narrow, options.seeds, options.runs = "quick", (32,), [0], Path(tempfile.mkdtemp())
    options.sizes, options.steps = SIZES[options.size], options.steps or STEPS[options.size]
    name = "tax" if options.size == "2.0M" else f"tax-{options.size}"
    out = (options.runs or Path(f"runs/{name}-{options.steps}")).absolute()
    options.data = [str(Path(name).absolute()) if Path(name).exists() else name for name in options.data]
    found = {}
    try:
        for stage in configurations(options, out):
            trained(out, stage, options.jobs, commit())
            with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
                facts = pool.map(evaluate, [out / name for name in stage], [options.data] * len(stage))
                found |= dict(zip(stage, facts, strict=True))
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    tokens = options.steps * options.sizes["batch_size"] * options.sizes["ctx_len"]
    summary = {**summarise(found, list(options.seeds)), "tokens": tokens, "seeds": list(options.seeds)}
    if not options.quick:
        corpus = Path(options.data[0]).name
        recipe = {"sizes": options.sizes, "dense": DENSE, "student": STUDENT, "healing": HEALING}
        recipe |= {"dense_share": DENSE_SHARE, "healed_share": HEALED_SHARE}
        # the 4M tokens of 2.0M are the ones that all else is compared with
        result = name.replace("-", "_") + ("" if name == "tax" and tokens < 5e6 else f"_{round(tokens / 1e6)}m")
        path = write_result(result, {**summary, "corpus": corpus, "recipe": recipe, "runs": found})
        if not options.pair:
            draw(found, options.seeds[0], f"{corpus}, {tokens / 1e6:.1f}M tokens", path.with_suffix(".png"))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
