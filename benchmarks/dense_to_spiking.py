"""A trained dense model becomes spike-driven: how its loss recovers, against training from scratch for as many steps.

    python benchmarks/dense_to_spiking.py DENSE_RUN --data FOLDER_OR_FILES   300 steps of 8 windows: about 20 minutes
    python benchmarks/dense_to_spiking.py --quick   a minute: a dense model is trained first, no published number

Ways: neurons annealed in; annealed and taught by the dense model; all neurons at once; from scratch.
Bits and firing are of the beginning of the valid split, read with carried state. Writes results/dense_to_spiking.json.
Last line: JSON with bits per byte and firing rate of each way at each evaluation.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from measure import write_result

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.data.prepare import prepare
from spikegpt.evaluate.perplexity import evaluate_stream
from spikegpt.train.convert import defaults_from
from spikegpt.train.journal import read_metrics
from spikegpt.train.trainer import train

SCRATCH_LR = 4e-3


def curve(run: Path) -> list[dict]:
    lines = [line for line in read_metrics(run) if line["kind"] == "valid"]
    return [
        {"step": line["step"], "bits_per_byte": line["bits_per_byte"], "firing": line["firing_rate"]} for line in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", nargs="?", type=Path)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    shared = {
        "data": tuple(options.data),
        "threads": options.threads,
        "batch_size": 8,
        "sample_every": 0,
        # one for all that are compared
        "precision": "no",
        "eval_tokens": 32_768,
    }
    if options.quick:
        options.steps, shared["eval_tokens"] = 60, 4096
        small = ModelConfig(n_layer=2, n_embd=32, ctx_len=32, spiking="none")
        options.dense = train(small, TrainConfig(**{**shared, "steps": 100}), folder / "dense", quiet=True).run
    if options.dense is None:
        parser.error("name the dense run, or --quick")
    shared |= {"steps": options.steps, "eval_every": max(options.steps // 6, 1)}

    config, converting = defaults_from(options.dense, spiking="input")
    converting = dataclasses.replace(converting, **shared)
    scratch = TrainConfig(tokenizer=converting.tokenizer, lr=SCRATCH_LR, **shared)
    ways = {
        "annealed": (options.dense, dataclasses.replace(converting, teacher=None)),
        "annealed, taught by the dense model": (
            options.dense,
            dataclasses.replace(converting, teacher=str(options.dense)),
        ),
        "all neurons at once": (options.dense, dataclasses.replace(converting, anneal=0.0, teacher=None)),
        "from scratch": (None, scratch),
    }
    curves = {}
    for name, (start, training) in ways.items():
        curves[name] = curve(train(config, training, folder / name.replace(" ", "-"), start=start, quiet=True).run)
        print(
            name,
            "  ".join(
                f"{point['step']}: {point['bits_per_byte']:.4f} ({point['firing']:.1%})" for point in curves[name]
            ),
            flush=True,
        )
    model, tokenizer = load_model(options.dense)
    valid = prepare(options.data, tokenizer).split("valid")[: shared["eval_tokens"]]
    payload = {"dense_bits_per_byte": evaluate_stream(model, valid, tokenizer).bits_per_byte, "curves": curves}
    if not options.quick:
        rates = {"converted": converting.lr, "from scratch": scratch.lr}
        facts = {
            "dense": options.dense.name,
            "corpus": Path(options.data[0]).name,
            "parameters": model.count_parameters(),
            "lr": rates,
        }
        write_result("dense_to_spiking", {**facts, "steps": options.steps, "anneal": converting.anneal, **payload})
    print(json.dumps(payload))


if __name__ == "__main__":
    main()
