"""Train a spiking model and its dense twin on equal data, seed and steps; write curves, final bits and firing rates.

    python benchmarks/twin_curves.py --data FOLDER_OR_FILES   `small`, 2,000 steps of 8 x 256 tokens, both models
    python benchmarks/twin_curves.py --spiking output --data ...   the published block in place of the spike-driven one
    python benchmarks/twin_curves.py --quick   under a minute, the built-in corpus, no published number

Each learns by the recipe of its preset; the spike-driven model is its own teacher, without its neurons.
Runs that were broken off are resumed; `--only` trains one of the two.
Last line: JSON with bits_spiking, bits_twin (bits per byte on the test split), gap and firing_rate.
"""

import argparse
import json
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from measure import write_result

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import model_preset, train_preset
from spikegpt.data.prepare import prepare
from spikegpt.evaluate.perplexity import evaluate_stream, evaluate_windows
from spikegpt.train.journal import read_metrics
from spikegpt.train.trainer import resume, train

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BLOCKS = {"none": "dense twin", "input": "spike-driven block", "output": "published block"}


def train_one(spiking: str, runs: Path, data: list[str], preset: str, steps: int, threads: int) -> None:
    run = runs / spiking
    if (run / "checkpoints" / f"step-{steps:08d}").exists():
        return
    if (run / "config.json").exists():
        resume(run)
        return
    config = train_preset(
        preset,
        spiking,
        data=data,
        steps=steps,
        threads=threads,
        eval_every=max(steps // 8, 1),
        save_every=250,
        sample_every=0,
        log_every=10,
        # one for all that are compared
        precision="no",
    )
    train(model_preset(preset, spiking=spiking), config, run)


def results_of(run: Path, data: list[str]) -> dict:
    model, tokenizer = load_model(run)
    test = np.asarray(prepare(data, tokenizer).split("test"))
    metrics = read_metrics(run)
    return {
        "parameters": model.count_parameters(),
        "stream": evaluate_stream(model, test, tokenizer).to_dict(),
        "windows": evaluate_windows(model, test, tokenizer, model.config.ctx_len, model.config.ctx_len // 2).to_dict(),
        "train_curve": [
            (line["step"], line["bits_per_byte"], line["firing_rate"]) for line in metrics if line["kind"] == "train"
        ],
        "valid_curve": [
            (line["step"], line["bits_per_byte"], line["firing_rate"]) for line in metrics if line["kind"] == "valid"
        ],
    }


def draw(results: dict[str, dict], title: str, path: Path) -> None:
    spiking = list(results.values())[-1]
    rates = {name: rate for name, rate in spiking["stream"]["firing_rates"].items() if name != "emb"}
    # every layer is named beside its bar
    height = max(4.0, 0.15 * len(rates))
    figure, (quality, firing) = plt.subplots(1, 2, figsize=(10, height), width_ratios=(3, 2), layout="constrained")
    for (spiking, result), colour in zip(results.items(), ("C7", "C0"), strict=True):
        label = BLOCKS[spiking]
        train_curve = np.array([(step, bits) for step, bits, _ in result["train_curve"]])
        smooth = np.convolve(np.pad(train_curve[:, 1], (4, 4), mode="edge"), np.ones(9) / 9, mode="valid")
        quality.plot(train_curve[:, 0], smooth, color=colour, alpha=0.4, label=f"{label}, train")
        valid = np.array([(step, bits) for step, bits, _ in result["valid_curve"]])
        quality.plot(valid[:, 0], valid[:, 1], "o-", color=colour, label=f"{label}, valid")
    quality.set(xlabel="step", ylabel="bits per byte", title=title, ylim=(None, 3))
    quality.legend()
    labels = [name.removeprefix("blocks.").replace("_neuron", "") for name in rates]
    firing.barh(labels, list(rates.values()), color="C0")
    firing.tick_params(axis="y", labelsize=8)
    firing.margins(y=0.01)
    firing.invert_yaxis()
    firing.set(xlabel="firing rate on the test split", title="by layer")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/twin_curves"))
    parser.add_argument("--spiking", choices=("input", "output"), default="input")
    parser.add_argument("--only", choices=BLOCKS)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.preset, options.steps, options.runs = "tiny", 60, Path(tempfile.mkdtemp())
    pair = ("none", options.spiking)
    for spiking in [options.only] if options.only else pair:
        train_one(spiking, options.runs, options.data, options.preset, options.steps, options.threads)
    if options.only:
        return
    results = {spiking: results_of(options.runs / spiking, options.data) for spiking in pair}
    twin, spiking = (result["stream"] for result in results.values())
    summary = {
        "bits_spiking": spiking["bits_per_byte"],
        "bits_twin": twin["bits_per_byte"],
        "gap": spiking["bits_per_byte"] / twin["bits_per_byte"] - 1,
        "firing_rate": spiking["firing_rate"],
    }
    if not options.quick:
        corpus = Path(options.data[0]).name
        config = json.loads((options.runs / options.spiking / "config.json").read_text())
        # where the text lay is nobody's business
        config["train"] |= {"data": corpus, "teacher": config["train"]["teacher"] and "none"}
        facts = {"corpus": corpus, "config": {key: config[key] for key in ("model", "train")}, "runs": results}
        path = write_result(f"twin_curves_{options.spiking}", {**summary, **facts})
        draw(results, f"{options.preset} on {corpus}: {options.steps} steps", path.with_suffix(".png"))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
