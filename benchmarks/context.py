"""Bits per byte against bytes carried per text: cache policies of a Transformer beside constant states of its size.

    python benchmarks/context.py --data FOLDER_OR_FILES   4 layers, width 192, 2,000 steps of 4 x 512: two hours
    python benchmarks/context.py --quick   minutes, the built-in corpus, tiny runs, no published number

Attention, the dense twin and the spike-driven block learn by the recipe of tax.py at each of RATES times its learning
rates, on equal tokens, and the best on the valid split is kept; EliteKV converts the best attention at two cache ratios
and trains on for 200 steps. Then all are measured on the same windows of the test split by every policy. The same three
blocks learn keys and values, and are asked for them. A goal that is missed is printed as missed. One thread each,
`--jobs` at once; what exists is kept, what was broken off goes on. Writes results/context.json, every point of the
picture, context.png and context_recall.png. Last line: JSON with the goals.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from measure import RESULTS, alternate, commit, ratio, write_result
from sweep import Configuration, trained
from tax import COMPARED, DENSE, STUDENT, evaluate
from train_step import make_step

from neuromorphic.report.canvas import to_png
from neuromorphic.report.context import CONSTANT, ContextPoint
from neuromorphic.report.context_figures import bits_against_bytes, recall_against_bytes
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.corpora import recall_corpus
from spikegpt.measure.context import measure_context
from spikegpt.train.precision import multiplies_bfloat16

# heads of a power of two channels, as RotateKV rotates them
BLOCKS: dict[str, Configuration] = {
    "attention": {**DENSE, "mixer": "attention", "n_head": 6},
    "dense": DENSE,
    "spiking": {**STUDENT, "synop_budget": COMPARED},
}
# of the learning rates of the recipe
RATES = (0.5, 1.0, 2.0)
BUDGETS = (4, 8, 16, 32, 64, 128, 256, 512)
LOW_BITS = (2, 3, 4)
# cached numbers of 384 per layer and token: half and a quarter
ELITE = {"elite-50": (6, 120), "elite-25": (3, 60)}
ELITE_STEPS = 200
BATCH = 4
# keys and values of a letter each: up to all 26 in a line
RECALL: Configuration = {"ctx_len": 256, "batch_size": 8}
RECALL_LETTERS, RECALL_PAIRS = 1, 26
RECALL_LENGTHS = (32, 64, 128, 208)
RECALL_POLICIES = ("full", *(f"{kind}:{budget}" for kind in ("recency", "h2o", "roco") for budget in (16, 32, 64)))


def at_rate(block: str, factor: float) -> Configuration:
    return {**BLOCKS[block], **{name: factor * BLOCKS[block][name] for name in ("lr", "muon_lr")}}


def best_of_rates(options: argparse.Namespace, always: Configuration) -> dict[str, dict]:
    """Return block -> its best run, and the bits of every rate."""
    sizes = {"n_layer": options.layers, "n_embd": options.width, "ctx_len": options.ctx_len, "steps": options.steps}
    names = {(block, rate): f"{block}-{rate:g}" for block in BLOCKS for rate in options.rates}
    wanted = {name: {**sizes, **always, **at_rate(block, rate)} for (block, rate), name in names.items()}
    trained(options.runs, wanted, options.jobs, commit())
    found = {}
    for block in BLOCKS:
        bits = {rate: evaluate(options.runs / names[block, rate], options.data)["bits"] for rate in options.rates}
        found[block] = {"run": options.runs / names[block, min(bits, key=bits.__getitem__)], "bits_by_rate": bits}
    return found


def elite_runs(attention: Path, options: argparse.Namespace, always: Configuration, steps: int) -> list[Path]:
    """Return the runs of ELITE, each of which begins with `attention`."""
    share = options.width // 6
    wanted = {}
    for name, (pairs, kv_dim) in ELITE.items():
        # a smaller model keeps the same shares
        sizes = {"elite_pairs": max(pairs * share // 32, 1), "kv_dim": kv_dim * options.width // 192}
        wanted[name] = {"from": str(attention), **always, **sizes, "steps": steps}
    trained(options.runs, wanted, options.jobs, commit())
    return [options.runs / name for name in ELITE]


def recall_runs(options: argparse.Namespace, always: Configuration) -> list[Path]:
    """Return runs of the three blocks that learned keys and values, by the recipe as it is."""
    corpus = recall_corpus(options.runs / "corpus", pairs=RECALL_PAIRS, letters=RECALL_LETTERS)
    sizes = {"n_layer": options.layers, "n_embd": options.width, "steps": options.steps}
    shared = {**always, **sizes, **RECALL, "data": [str(corpus)], "dropout": 0.0}
    trained(
        options.runs, {f"recall-{block}": {**shared, **at_rate(block, 1)} for block in BLOCKS}, options.jobs, commit()
    )
    return [options.runs / f"recall-{block}" for block in BLOCKS]


def step_ratio(options: argparse.Namespace) -> dict:
    """Return how long a training step of attention takes, over one of its dense twin."""
    sizes = {"n_layer": options.layers, "n_embd": options.width, "ctx_len": options.ctx_len, "dropout": 0.0}
    configs = {
        "attention": ModelConfig(**sizes, spiking="none", mixer="attention", n_head=BLOCKS["attention"]["n_head"]),
        "dense": ModelConfig(**sizes, spiking="none"),
    }
    precision = "bf16" if multiplies_bfloat16() else "no"
    steps = {name: make_step(config, BATCH, options.ctx_len, precision) for name, config in configs.items()}
    times = alternate(steps, 3 if options.quick else 15, warmup=2)
    return ratio(times["attention"], times["dense"])


def policies_of(options) -> list[str]:
    budgets = [budget for budget in options.budgets if budget <= options.ctx_len]
    evicting = [f"{kind}:{budget}" for kind in ("recency", "h2o", "tova", "roco") for budget in budgets]
    low = [f"rotate:{bits}" for bits in LOW_BITS] + [f"mikv:{bits},share=0.25" for bits in LOW_BITS]
    # of the shortest prompt more than a window of queries has to be left
    rates = [rate for rate in (0.25, 0.5) if int(rate * options.lengths[0] // 2) > 8]
    prompts = [f"fastkv:{rate},tsp=0.5" for rate in rates]
    prompts += [f"dynamic:{budget}" for budget in budgets if 8 < budget <= options.ctx_len // 2]
    return ["full", *evicting, *low, *prompts]


def goals_of(points: list[ContextPoint], best: dict[str, dict], step: float, options) -> dict[str, dict]:
    """Goal -> what was reached, what was wanted, whether it was met."""
    at = {(point.model, point.policy): point.bits_per_byte for point in points if point.context == options.ctx_len}
    attention = best["attention"]["run"].name
    full = at[attention, "full"]

    def over_full(bits: float) -> float:
        return bits / full - 1

    quarter = options.ctx_len // 4
    lost = {name: over_full(at[attention, name]) for name in (f"h2o:{quarter}", "mikv:2,share=0.25")}
    twin, own = (min(best[block]["bits_by_rate"].values()) for block in ("dense", "attention"))
    reached = {
        "attention over its dense twin": (own / twin - 1, 0.03),
        "training step of attention over its dense twin's": (step - 1, 0.5),
        f"roco:{quarter} over full": (over_full(at[attention, f"roco:{quarter}"]), 0.015),
        "rotate:4 over full": (over_full(at[attention, "rotate:4"]), 0.003),
        "rotate:2 over full": (over_full(at[attention, "rotate:2"]), 0.03),
        "mikv:2 over full, wanted a third of what h2o loses": (lost["mikv:2,share=0.25"], lost[f"h2o:{quarter}"] / 3),
        **{
            f"{name} over full": (over_full(at[name, "full"]), limit)
            for name, limit in (("elite-50", 0.01), ("elite-25", 0.03))
        },
    }
    return {
        name: {"reached": value, "wanted": limit, "met": value <= limit} for name, (value, limit) in reached.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--runs", type=Path, default=Path("runs/context"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--texts", type=int, default=16, help="windows of each length")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.layers, options.width, options.ctx_len, options.steps = 4, 192, 512, 2000
    options.rates, options.lengths, elite_steps = RATES, [128, 512, 2048], ELITE_STEPS
    options.budgets = BUDGETS
    if options.quick:
        options.layers, options.width, options.ctx_len, options.steps = 2, 48, 64, 10
        options.runs, options.texts, options.budgets = Path(tempfile.mkdtemp()), 1, (4, 16)
        options.rates, options.lengths, elite_steps = RATES[1:2], [64], 10
    options.runs = options.runs.absolute()
    options.data = [str(Path(given).absolute()) if Path(given).exists() else given for given in options.data]
    always = {"data": options.data, "batch_size": BATCH, "sample_every": 0, "eval_every": 0, "keep": 1}
    try:
        best = best_of_rates(options, {**always, "dropout": 0.0})
        elite = elite_runs(best["attention"]["run"], options, always, elite_steps)
        asked = recall_runs(options, always)
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    runs = [best[block]["run"] for block in BLOCKS]
    points = measure_context(runs, policies_of(options), options.lengths, texts=options.texts)
    points += measure_context(elite, ["full", "roco:16", "roco:64"], options.lengths, texts=options.texts)
    recalled = measure_context(asked, RECALL_POLICIES, RECALL_LENGTHS, texts=options.texts, recall=RECALL_LETTERS)
    carried = (
        {point.context: point.bytes_per_text for point in measure_context(runs[2:], [], [128, 1_000_000], texts=1)}
        if not options.quick
        else {}
    )
    step = step_ratio(options)
    goals = goals_of(points, best, step["median"], options)
    # models of a few steps say nothing of them
    for name, goal in () if options.quick else goals.items():
        print(f"{'met   ' if goal['met'] else 'MISSED'} {name}: {goal['reached']:+.2%}, wanted {goal['wanted']:.2%}")
    if not options.quick:
        blocks = {block: {**found, "run": found["run"].name} for block, found in best.items()}
        state = {"constant_state_bytes_by_context": carried, "corpus": Path(options.data[0]).name}
        lists = {"points": [p.to_dict() for p in points], "recall": [p.to_dict() for p in recalled]}
        write_result("context", {"goals": goals, "step_ratio": step, "blocks": blocks, **state, **lists})
        shown = [p for p in points if p.context == options.ctx_len]
        (RESULTS / "context.png").write_bytes(to_png(bits_against_bytes(shown)))
        (RESULTS / "context_recall.png").write_bytes(to_png(recall_against_bytes(recalled)))
    constant = {point.model: point.bytes_per_text for point in points if point.policy == CONSTANT}
    print(json.dumps({"goals": goals, "points": len(points), "constant_state_bytes": constant}))


if __name__ == "__main__":
    main()
