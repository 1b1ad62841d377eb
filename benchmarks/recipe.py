"""Levers of both sides, each alone against the recipe of tax.py: how dense models and spike-driven students learn best.

    python benchmarks/recipe.py --data NOVELS      2.0M, 600 and 200 steps of 16 x 128, one seed: an hour or two
    python benchmarks/recipe.py --quick            a minute, the built-in corpus, no published number

A dense lever changes one thing of the best dense recipe, at equal tokens; a student's one of the best run that is its
own teacher, at as many; a healed one's one of the best healing of the same dense model, which teaches it. Bits and
firing are of the beginning of the valid split (65,536 tokens), read with carried state. One thread each, `--jobs` at
once; what exists is kept. Writes results/recipe.json.
Last line: JSON with dense, student and healed: lever -> [bits, firing].
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from measure import commit, write_result
from sweep import Configuration, trained
from tax import COMPARED, DENSE, HEALING, SIZES, STUDENT

from spikegpt.common.errors import SpikegptError

STEPS, HEALED = 600, 200
ADAMW = {"optimizer": "adamw"}
# what each changes; "best" changes nothing
DENSE_LEVERS: dict[str, Configuration] = {
    "best": {},
    "adamw": ADAMW,
    "adamw, twice the rate": {**ADAMW, "lr": 8e-3},
    "half of Muon's rate": {"muon_lr": 0.015},
    "twice Muon's rate": {"muon_lr": 0.06},
    "momentum 0.95": {"muon_momentum": 0.95},
    "half of AdamW's rate": {"lr": 2e-3},
    "twice AdamW's rate": {"lr": 8e-3},
    "warm-up, stable, decay over 40 %": {"decay_share": 0.4},
    "cosine": {"schedule": "cosine"},
    "down to a tenth": {"lr_final": 4e-4},
    "weight decay 0.1": {"weight_decay": 0.1},
    "dropout 0.03": {"dropout": 0.03},
    "half the batch, twice the steps": {"batch_size": 8, "steps": 2 * STEPS},
    "twice the batch, half the steps": {"batch_size": 32, "steps": STEPS // 2},
}
STUDENT_LEVERS: dict[str, Configuration] = {
    "best": {},
    "not taught": {"self_teacher": 0.0},
    "a third of the weight without neurons": {"self_teacher": 0.3},
    "nine tenths taught": {"teacher_weight": 0.9},
    "reverse KL": {"teacher_loss": "reverse"},
    "no commitment": {"commitment": 0.0},
    "three times the commitment": {"commitment": 3.0},
    "adamw": ADAMW,
    "adamw, not taught": {**ADAMW, "self_teacher": 0.0},
    "adamw, not taught, per unit spike": {**ADAMW, "self_teacher": 0.0, "learn_in": "spikes"},
    "cosine": {"schedule": "cosine"},
    "four levels": {"levels": 4, "hidden_levels": 8},
    "half the batch, twice the steps": {"batch_size": 8, "steps": 2 * STEPS},
}
HEALED_LEVERS: dict[str, Configuration] = {
    "best": {},
    "not taught": {"teacher": None},
    "predictions alone": {"teacher_features": 0.0},
    "a third of the features": {"teacher_features": 1.0},
    "half cross-entropy": {"teacher_weight": 0.5},
    "adaptive KL": {"teacher_loss": "akl"},
    "reverse KL": {"teacher_loss": "reverse"},
    "no commitment": {"commitment": 0.0},
    "a third of the commitment": {"commitment": 2.0},
    "learned per unit spike": {"learn_in": "spikes"},
    "Muon": {"optimizer": "muon"},
    "of an AdamW model": {"begun": "adamw, twice the rate"},
    "four levels": {"levels": 4, "hidden_levels": 8},
    "one level": {"levels": 1, "hidden_levels": 1},
    "a budget that shrinks": {"synop_warmup": 0.5},
    "annealed": {"anneal": 0.3},
    "half the rate": {"lr": 4e-3},
    "half the batch, twice the steps": {"batch_size": 8, "steps": 2 * HEALED},
}


def named(side: str, lever: str) -> str:
    return f"{side}-{lever}".replace(",", "").replace(" ", "-").replace("%", "percent")


def stages(options, out: Path) -> list[dict[str, Configuration]]:
    always = {"data": options.data, "sample_every": 0, "eval_every": 0, "keep": 1}
    shared = {**options.sizes, **always, **DENSE, "steps": options.steps}
    scale = options.steps / STEPS

    def changed(base: Configuration, lever: Configuration) -> Configuration:
        made = {**base, **lever}
        if "steps" in lever:
            made["steps"] = round(lever["steps"] * scale)
        return {key: value for key, value in made.items() if value is not None}

    dense = {named("dense", name): changed(shared, lever) for name, lever in DENSE_LEVERS.items()}
    alone = {**options.sizes, **always, **STUDENT, "steps": options.steps, "synop_budget": COMPARED}
    students = {named("student", name): changed(alone, lever) for name, lever in STUDENT_LEVERS.items()}
    healed_ones = {}
    for name, lever in HEALED_LEVERS.items():
        begun = str((out / named("dense", lever.get("begun", "best"))).absolute())
        healed = {
            **{"from": begun, "teacher": begun, "spiking": "input", "steps": round(HEALED * scale)},
            **{"batch_size": options.sizes["batch_size"], "synop_budget": COMPARED},
            **always,
            **HEALING,
        }
        made = changed(healed, {key: value for key, value in lever.items() if key != "begun"})
        if "teacher" not in made:
            made = {key: value for key, value in made.items() if not key.startswith("teacher")}
        healed_ones[named("healed", name)] = made
    return [dense, students, healed_ones]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--runs", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.sizes, options.steps = SIZES["2.0M"], STEPS
    if options.quick:
        options.sizes, options.steps = {"n_layer": 1, "n_embd": 32, "ctx_len": 16, "batch_size": 4}, 12
        options.runs = Path(tempfile.mkdtemp())
    options.data = [str(Path(name).absolute()) if Path(name).exists() else name for name in options.data]
    out = options.runs.absolute()
    found: dict[str, dict[str, list]] = {"dense": {}, "student": {}, "healed": {}}
    try:
        for side, stage in zip(found, stages(options, out), strict=True):
            results = trained(out, stage, options.jobs, commit())
            for name in stage:
                lever = name.removeprefix(f"{side}-")
                found[side][lever] = [results[name]["bits_per_byte"], results[name]["firing_rate"]]
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    if not options.quick:
        recipe = {
            "sizes": options.sizes,
            "dense": DENSE,
            "healing": HEALING,
            "student": STUDENT,
            "steps": STEPS,
            "healed": HEALED,
        }
        levers = {"dense_levers": DENSE_LEVERS, "student_levers": STUDENT_LEVERS, "healed_levers": HEALED_LEVERS}
        write_result("recipe", {**found, "recipe": recipe, **levers, "corpus": Path(options.data[0]).name})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
