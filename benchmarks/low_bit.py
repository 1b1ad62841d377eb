"""What weights of a few bits cost: the spike-driven model of tax.py with 8, 4, 3, 2 and 1.58 bits, beside float32.

    python benchmarks/low_bit.py --data NOVELS     2.0M, 2,000 steps of 16 x 128, three seeds: hours; --bits, --seeds
    python benchmarks/low_bit.py --quick           a minute, the built-in corpus, no published number

Each learns as many tokens by the same recipe (tax.py's student at COMPARED of the dense products), its weights whole
numbers of steps from the first step on; float32 are the students of tax.py, whose runs are shared if --runs are its
own. With --settle once more, the last CONFIDENT_SHARE of the steps with `--confident`, which settles the codes. Bits of
the whole valid split, read once with carried state; `changed` is the share of codes that a step changed, mean over the
last tenth. Writes results/low_bit.json. Last line: JSON with, by bits, tax, changed and file_bytes, and settled_tax,
settled_changed.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import commit, write_result
from sweep import Configuration, trained
from tax import COMPARED, SIZES, STEPS, STUDENT, evaluate

from spikegpt.checkpoint.run import find_model
from spikegpt.common.errors import SpikegptError
from spikegpt.train.journal import read_metrics

BITS = (8, 4, 3, 2, 1.58)
SEEDS = (0, 1, 2)
CONFIDENT, CONFIDENT_SHARE = 0.005, 0.1


def stages(options, out: Path) -> list[dict[str, Configuration]]:
    always = {"data": options.data, "sample_every": 0, "eval_every": 0, "keep": 1}
    first: dict[str, Configuration] = {}
    settled: dict[str, Configuration] = {}
    for seed in options.seeds:
        shared = {**options.sizes, **always, **STUDENT, "seed": seed, "synop_budget": COMPARED}
        first[f"student-{seed}-{COMPARED}"] = {**shared, "steps": options.steps}
        for bits in options.bits:
            steps = round((1 - CONFIDENT_SHARE) * options.steps)
            first[f"bits-{bits}-{seed}"] = {**shared, "steps": options.steps, "weight_bits": bits}
            first[f"begun-{bits}-{seed}"] = {**shared, "steps": steps, "weight_bits": bits}
            settled[f"settled-{bits}-{seed}"] = {
                **{"from": str((out / f"begun-{bits}-{seed}").absolute()), **always, **STUDENT},
                **{"batch_size": options.sizes["batch_size"], "synop_budget": COMPARED, "synop_warmup": 0.0},
                **{"seed": seed, "steps": options.steps - steps, "weight_bits": bits, "confident": CONFIDENT},
            }
    if not options.settle:
        first = {name: configuration for name, configuration in first.items() if not name.startswith("begun")}
        return [first]
    return [first, settled]


def changed_at_the_end(run: Path) -> float:
    """Share of codes that a step changed, mean over those logged in the last tenth."""
    lines = [line for line in read_metrics(run) if line["kind"] == "train" and "codes_changed" in line]
    last = lines[-1]["step"]
    return statistics.mean(line["codes_changed"] for line in lines if line["step"] > 0.9 * last)


def summarise(out: Path, options) -> dict:
    def bits_of(name: str) -> float:
        return statistics.mean(evaluate(out / name.format(seed=seed), options.data)["bits"] for seed in options.seeds)

    full, found = bits_of(f"student-{{seed}}-{COMPARED}"), {}
    for bits in options.bits:
        runs = {"": f"bits-{bits}-{{seed}}"}
        if options.settle:
            runs["settled_"] = f"settled-{bits}-{{seed}}"
        found[str(bits)] = facts = {}
        for kind, name in runs.items():
            own = [out / name.format(seed=seed) for seed in options.seeds]
            facts[f"{kind}tax"] = bits_of(name) / full - 1
            facts[f"{kind}changed"] = statistics.mean(map(changed_at_the_end, own))
            facts["file_bytes"] = (find_model(own[0]) / "model.safetensors").stat().st_size
    return {"float32_bits": full, "by_bits": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--steps", type=int, default=STEPS["2.0M"])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--settle", action="store_true", help="also settle the codes in the last tenth of the steps")
    parser.add_argument("--runs", type=Path, help="by default runs/tax-STEPS, where tax.py's students are")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.sizes = SIZES["2.0M"]
    if options.quick:
        options.sizes, options.steps = {"n_layer": 1, "n_embd": 32, "ctx_len": 16, "batch_size": 4}, 20
        options.seeds, options.bits, options.settle = [0], [4.0, 1.58], True
        options.runs = Path(tempfile.mkdtemp())
    out = (options.runs or Path(f"runs/tax-{options.steps}")).absolute()
    options.data = [str(Path(name).absolute()) if Path(name).exists() else name for name in options.data]
    options.bits = [int(bits) if bits == int(bits) else bits for bits in options.bits]
    try:
        for stage in stages(options, out):
            trained(out, stage, options.jobs, commit())
        summary = summarise(out, options)
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    tokens = options.steps * options.sizes["batch_size"] * options.sizes["ctx_len"]
    summary |= {"tokens": tokens, "seeds": list(options.seeds)}
    if not options.quick:
        recipe = {"sizes": options.sizes, "student": STUDENT, "confident": CONFIDENT, "share": CONFIDENT_SHARE}
        write_result("low_bit", {**summary, "corpus": Path(options.data[0]).name, "recipe": recipe})
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
