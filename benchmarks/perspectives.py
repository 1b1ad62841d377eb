"""Multiple Temporal Perspectives on a trained dense RWKV-4, beside it after the same fine-tune of the same parameters.

    python benchmarks/perspectives.py --data NOVELS     2.0M, 2,000 steps and 400 more of 16 x 128, three seeds
    python benchmarks/perspectives.py --quick           a minute, the built-in corpus, no published number

The base is the twin of tax.py, whose runs are shared if --runs are its own. From each base go on, with 1, 2 and 4
perspectives, all else FROZEN: what learns is every mix of tokens and the head, as published, and with more than one
perspective what joins them. The rate is one for all, and falls to a tenth. Bits of the whole valid split, read once
with carried state; before the fine-tune all of them are the base. Writes results/perspectives.json. Last line: JSON
with before, and by perspectives: bits, gain over one perspective, both by seed too, operations, new_parameters.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import commit, write_result
from sweep import Configuration, trained
from tax import DENSE, SEEDS, SIZES, STEPS, evaluate

from spikegpt.common.errors import SpikegptError

PERSPECTIVES = (1, 2, 4)
# of the base's steps
TUNED_SHARE = 0.2
FROZEN = ["emb.weight", "ln_out.*", "blocks.*.weight", "blocks.*.bias", "blocks.*.time_decay", "blocks.*.time_first"]
# of 1e-2 and 1e-3 the better one in a small model, with one perspective and with four
LR = 1e-2


def configurations(options: argparse.Namespace, out: Path) -> list[dict[str, Configuration]]:
    """Return what is to be trained, in two stages: the second begins with models of the first."""
    always = {"data": options.data, "sample_every": 0, "eval_every": 0, "keep": 1}
    base: dict[str, Configuration] = {}
    tuned: dict[str, Configuration] = {}
    for seed in options.seeds:
        base[f"twin-{seed}"] = {**options.sizes, **always, "seed": seed, "steps": options.steps, **DENSE}
        for perspectives in options.perspectives:
            tuned[f"perspectives-{perspectives}-{seed}"] = {
                **{"from": str((out / f"twin-{seed}").absolute()), "perspectives": perspectives},
                **{"batch_size": options.sizes["batch_size"], "steps": round(TUNED_SHARE * options.steps)},
                **{**always, "seed": seed, "freeze": FROZEN, "lr": options.lr, "lr_final": options.lr / 10},
            }
    return [base, tuned]


def summarise(found: dict[str, dict], perspectives: list[int], seeds: list[int]) -> dict:
    """Return the bits of the bases, and by number of perspectives what the fine-tuned models come to."""

    def bits_of(name: str) -> list[float]:
        return [found[f"{name}-{seed}"]["bits"] for seed in seeds]

    one, by_number = bits_of("perspectives-1"), {}
    for number in perspectives:
        facts, bits = found[f"perspectives-{number}-{seeds[0]}"], bits_of(f"perspectives-{number}")
        by_number[str(number)] = {
            "bits": statistics.mean(bits),
            "bits_by_seed": bits,
            "gain": 1 - statistics.mean(bits) / statistics.mean(one),
            "gain_by_seed": [1 - own / other for own, other in zip(bits, one, strict=True)],
            "operations": sum(facts[kind] for kind in ("macs", "acs", "state", "elementwise")),
            "new_parameters": facts["parameters"] - found[f"perspectives-1-{seeds[0]}"]["parameters"],
        }
    before = bits_of("twin")
    return {"before": statistics.mean(before), "before_by_seed": before, "by_perspectives": by_number}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--steps", type=int, default=STEPS["2.0M"], help="of the base")
    parser.add_argument("--lr", type=float, default=LR, help="of the fine-tune, with any number of perspectives")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--runs", type=Path, help="by default runs/tax-STEPS, where tax.py's twins are")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.sizes, options.perspectives = SIZES["2.0M"], list(PERSPECTIVES)
    if options.quick:
        options.sizes, options.steps, options.seeds = SIZES["quick"], STEPS["quick"], [0]
        options.runs = Path(tempfile.mkdtemp())
    out = (options.runs or Path(f"runs/tax-{options.steps}")).absolute()
    options.data = [str(Path(name).absolute()) if Path(name).exists() else name for name in options.data]
    try:
        stages = configurations(options, out)
        for stage in stages:
            trained(out, stage, options.jobs, commit())
        found = {name: evaluate(out / name, options.data) for stage in stages for name in stage}
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    summary = summarise(found, options.perspectives, list(options.seeds))
    summary |= {"steps": round(TUNED_SHARE * options.steps), "seeds": list(options.seeds)}
    if not options.quick:
        recipe = {"sizes": options.sizes, "base": DENSE, "base_steps": options.steps}
        recipe |= {"frozen": FROZEN, "lr": options.lr}
        write_result("perspectives", {**summary, "corpus": Path(options.data[0]).name, "recipe": recipe})
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
