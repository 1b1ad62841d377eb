"""Make the models that come with spikegpt of a spike-driven run and its dense twin: weights, model card, figures.

    python benchmarks/ship.py --spiking RUN --twin RUN --data NOVELS --other python-docs FILE FILE
    python benchmarks/ship.py --quick          a pair of a minute, into a folder of its own, no published number

Matrices become codes of 8 bits with a scale per output, as `--weight-bits 8` packs them; all else stays float32. More
than LARGEST_LOSS of the bits per byte lost by that is refused, and so is a pair of other sizes, texts or tokens read.
What was shipped is then loaded and measured: bits on the test split of its text and on `--other` texts that it has not
seen, firing, operations, speed. Writes spikegpt/shipped/NAME and NAME-twin, each with its card, README.md, and
results/shipped.json, which is also the last line; with --out the folders alone, and elsewhere.
"""

import argparse
import dataclasses
import datetime
import json
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import commit, machine, write_result
from model_card import card
from sweep import trained
from tax import operations

from neuromorphic import OpCounter
from spikegpt.checkpoint.files import write_manifest
from spikegpt.checkpoint.run import configs_of, locate, progress_of, read_run_config, save_model
from spikegpt.checkpoint.shipped import CARD, PAIR, home
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import PRESETS, ModelConfig, SamplingConfig, TrainConfig, model_preset, train_preset
from spikegpt.data.prepare import prepare
from spikegpt.data.sources import PYTHON_DOCS
from spikegpt.data.tokenizers import Tokenizer
from spikegpt.evaluate.perplexity import evaluate_stream
from spikegpt.evaluate.runs import read_text
from spikegpt.generate import generate
from spikegpt.measure.runs import measure_speed
from spikegpt.measure.twins import NEURON_SETTINGS, OWN_SETTINGS
from spikegpt.model import SpikeGPT
from spikegpt.model.quantised import FULL, quantise_model
from spikegpt.train.convert import defaults_from

WEIGHT_BITS = 8
# what codes may cost: a share of the bits per byte on the test split
LARGEST_LOSS = 0.001
COUNTED_TOKENS = 8192
PROMPT = "The old house"
SAMPLING = SamplingConfig(temperature=0.7, max_tokens=300, top_p=0.95)
# of a command: what changes nothing that is learned, or is told already
UNTOLD = {*OWN_SETTINGS, "data", "tokenizer", "vocab_size", "spiking"}
QUICK = {"n_layer": 2, "n_embd": 48, "ctx_len": 64, "batch_size": 8, "steps": 60, "sample_every": 0, "eval_every": 0}
QUICK |= {"data": [PYTHON_DOCS], "dropout": 0.0}


class Trained(NamedTuple):
    """A run to be shipped, with those that it went on from, the oldest first."""

    run: Path
    model: ModelConfig
    values: dict[str, Any]
    stages: list[tuple[Path, ModelConfig, TrainConfig]]

    @property
    def tokens(self) -> int:
        """How many tokens its trainings read; a student's own teacher reads the same ones."""
        sizes = (
            train.steps * train.batch_size * train.grad_accumulation * model.ctx_len for _, model, train in self.stages
        )
        return sum(sizes)


def read_trained(run: Path) -> Trained:
    """Return what the folders of `run` and of those before it say.

    Raises:
        SpikegptError: one of them is gone, or no run, or `run` is unfinished.
    """
    done, steps = progress_of(locate(run).newest) or (0, 0)
    if done < steps or not steps:
        raise SpikegptError(f"{run} is at step {done} of {steps}; finish it: spikegpt train --resume {run}")
    values, stages, at = read_run_config(run), [], run
    while True:
        config = read_run_config(at)
        stages.insert(0, (at, *configs_of(at, config)))
        if not config.get("started_from"):
            return Trained(run, stages[-1][1], values, stages)
        at = Path(config["started_from"])


def check_pair(spiking: Trained, twin: Trained, text_sha256: str) -> None:
    """Raise SpikegptError unless `twin` is the dense twin of `spiking`, and both learned from the text of this digest.

    They may have been trained at rates of their own: the twin is the best dense model that was found.
    """
    for one, wants_spikes in ((spiking, True), (twin, False)):
        if (one.model.spiking != "none") != wants_spikes:
            kind = "a spike-driven" if wants_spikes else "its dense"
            raise SpikegptError(f"{one.run} has --spiking {one.model.spiking}; give {kind} run there")
        if (found := one.values["corpus"]["text_sha256"]) != text_sha256:
            raise SpikegptError(f"{one.run} learned from another text than --data: {found}, not {text_sha256}")
    sizes = [
        {name: value for name, value in one.model.twin().to_dict().items() if name not in NEURON_SETTINGS}
        for one in (spiking, twin)
    ]
    for name, found in sizes[1].items():
        if found != sizes[0][name]:
            raise SpikegptError(f"{twin.run} is no twin: its {name} is {found}, that of {spiking.run} {sizes[0][name]}")
    for name, ours, theirs in (
        ("tokens read", spiking.tokens, twin.tokens),
        ("tokenizer", spiking.values["tokenizer_fingerprint"], twin.values["tokenizer_fingerprint"]),
    ):
        if ours != theirs:
            raise SpikegptError(f"{twin.run} is no twin: {name} {theirs}, of {spiking.run} {ours}")


def commands(trained: Trained, text: str) -> list[str]:
    """Return the command of each training that made a run, with the settings that are none of the defaults."""
    lines, start = [], None
    for number, (run, model, train) in enumerate(trained.stages, 1):
        if start is None:
            fits = (name for name in PRESETS if model_preset(name).n_embd == model.n_embd)
            preset = next((name for name in fits if model_preset(name).n_layer == model.n_layer), "tiny")
            defaults = model_preset(preset, spiking=model.spiking), train_preset(preset, model.spiking)
            words = ["--preset", preset, "--spiking", model.spiking]
        else:
            defaults = defaults_from(start, spiking=model.spiking)
            words = ["--from", f"stage-{number - 1}"]
        settings = [flat(config) for config in (model, train)]
        for given, default in zip(settings, map(flat, defaults), strict=True):
            for name, value in given.items():
                if value != default[name] and name not in UNTOLD:
                    words += flag(name, value)
        lines.append(shlex.join(["spikegpt", "train", "--data", text, "--out", f"stage-{number}", *words]))
        start = run
    return lines


def flat(config: ModelConfig | TrainConfig) -> dict[str, Any]:
    """The settings of a configuration by the names of their flags."""
    values = config.to_dict()
    return values | (values.pop("neuron", None) or {})


def flag(name: str, value: Any) -> list[str]:
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{word}" if value else f"--no-{word}"]
    values = value if isinstance(value, list | tuple) else [value]
    # of a teacher its name
    return [f"--{word}", *(Path(one).name if isinstance(one, str) else str(one) for one in values)]


def as_codes(model: SpikeGPT) -> SpikeGPT:
    """Return `model` with matrices of WEIGHT_BITS, or itself if it learned with so few or fewer."""
    if model.config.weight_bits < FULL:
        return model
    codes = SpikeGPT(dataclasses.replace(model.config, weight_bits=WEIGHT_BITS), init=False).eval()
    codes.load_state_dict(model.state_dict())
    quantise_model(codes, WEIGHT_BITS)
    return codes


def pack(run: Path, folder: Path, tokens: np.ndarray) -> float:
    """Write the model of `run` into `folder` as it is shipped; return its bits per byte on `tokens` before that.

    Raises:
        SpikegptError: it lost more than LARGEST_LOSS.
    """
    model, tokenizer = load_model(run)
    folder.mkdir(parents=True)
    save_model(folder, as_codes(model), tokenizer)
    write_manifest(folder)
    before, after = (evaluate_stream(one, tokens, tokenizer).bits_per_byte for one in (model, load_model(folder)[0]))
    if after > before * (1 + LARGEST_LOSS):
        raise SpikegptError(
            f"{run}: codes of {WEIGHT_BITS} bits cost {after / before - 1:.2%} of {before:.4f} bits per byte, more "
            f"than {LARGEST_LOSS:.1%}; ship weights that learned with them: spikegpt train --from {run} --weight-bits 8"
        )
    return before


def measure(folder: Path, texts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what is said of a shipped model: `texts` by name, the first of which is of its own kind."""
    began = time.perf_counter()
    model, tokenizer = load_model(folder)
    load_s, bits, firing = time.perf_counter() - began, {}, {}
    for name, tokens in texts.items():
        found = evaluate_stream(model, tokens, tokenizer)
        bits[name], firing[name] = found.bits_per_byte, found.firing_rate
        print(f"{folder.name}: {name}: {found.bits_per_byte:.4f} bits per byte", file=sys.stderr, flush=True)
    with OpCounter(model) as counter, counter.phase("prefill"):
        evaluate_stream(model, next(iter(texts.values()))[:COUNTED_TOKENS], tokenizer)
    return {
        "parameters": model.count_parameters(),
        "block": model.config.spiking,
        "mixer": model.config.mixer,
        "file_bytes": (folder / "model.safetensors").stat().st_size,
        "load_s": round(load_s, 2),
        "bits_per_byte": bits,
        "firing_rate": None if model.config.spiking == "none" else firing,
        "per_token": operations(counter.tally()),
        "sample": PROMPT + generate(model, tokenizer, [PROMPT], SAMPLING)[0],
    }


def texts_of(options: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Return name -> tokens, at most `options.tokens`: the test split of the text of both, then of the others."""

    def test_split(text: str) -> np.ndarray:
        return np.asarray(prepare([text], tokenizer, options.cache).split("test"))[: options.tokens]

    texts = {f"{options.data.name}, test split": test_split(str(options.data))}
    for other in options.other:
        if other == PYTHON_DOCS:
            texts["Python's documentation, test split"] = test_split(other)
        else:
            how = {"file": Path(other), "limit": options.tokens, "cache": options.cache}
            texts[Path(other).name] = read_text(options.spiking, tokenizer, **how)[0]
    return texts


def ship(options: argparse.Namespace) -> dict[str, Any]:
    """Write the folders and return the facts."""
    pair = {options.name: read_trained(options.spiking), f"{options.name}-twin": read_trained(options.twin)}
    spiking, twin = pair.values()
    tokenizer = load_model(spiking.run)[1]
    header = prepare([str(options.data)], tokenizer, options.cache).header
    check_pair(spiking, twin, header["text_sha256"])
    for target in (options.out / name for name in pair):
        if target.exists() and not (target / CARD).exists():
            raise SpikegptError(f"{target} is there, and is no model with a card; give another --out or --name")
    texts = texts_of(options, tokenizer)
    own = next(iter(texts.values()))
    with tempfile.TemporaryDirectory() as made:
        folders = {name: Path(made) / name for name in pair}
        before = {name: pack(trained.run, folders[name], own) for name, trained in pair.items()}
        models = {
            name: {"bits_per_byte_of_float32": before[name], **measure(folder, texts)}
            for name, folder in folders.items()
        }
        loaded = [load_model(folder)[0] for folder in folders.values()]
        for model, speed in zip(models.values(), measure_speed(loaded, [own] * len(loaded)), strict=True):
            model["tokens_per_s"] = speed
        dense, ours = (model["bits_per_byte"] for model in reversed(models.values()))
        facts = {
            "text": options.text,
            "text_sha256": header["text_sha256"],
            "split_tokens": {name: split["tokens"] for name, split in header["splits"].items()},
            "tokens": {name: len(tokens) for name, tokens in texts.items()},
            "tokens_read": spiking.tokens,
            "tax": {name: ours[name] / dense[name] - 1 for name in texts},
            "models": models,
            "recipe": {name: commands(trained, options.data.name) for name, trained in pair.items()},
            "prompt": PROMPT,
            "sampling": SAMPLING.to_dict(),
            "made": {
                # where things lay on one machine tells nobody anything
                "command": shlex.join(["python", "benchmarks/ship.py", *(Path(word).name for word in sys.argv[1:])]),
                "machine": machine(),
                "commit": commit(),
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        }
        for name, folder in folders.items():
            (folder / CARD).write_text(card(name, facts), encoding="utf-8")
            target = options.out / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)
    return facts


def quick_pair(options: argparse.Namespace) -> None:
    """Train a pair of a minute, and fill in `options` what is to be done with it."""
    out = Path(tempfile.mkdtemp())
    kinds = {"spiking": {"spiking": "input", "synop_budget": 0.2}, "twin": {"spiking": "none"}}
    trained(out, {name: {**QUICK, **kind} for name, kind in kinds.items()}, 1, commit())
    options.spiking, options.twin, options.data, options.other = out / "spiking", out / "twin", Path(PYTHON_DOCS), []
    options.text, options.tokens, options.out = "Python's documentation", 4096, out / "shipped"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spiking", type=Path, help="a finished run of --spiking input")
    parser.add_argument("--twin", type=Path, help="its dense twin: the same sizes, text and tokens read")
    parser.add_argument("--data", type=Path, help="the text of both")
    parser.add_argument(
        "--other", nargs="*", default=[PYTHON_DOCS], help=f"texts that they have not seen; {PYTHON_DOCS}"
    )
    parser.add_argument("--tokens", type=int, default=350_000, help="at most so many of each text")
    parser.add_argument("--text", default="English novels, in the public domain", help="what --data is, in words")
    parser.add_argument("--name", default=PAIR[0])
    parser.add_argument("--cache", type=Path, help="where token files are kept")
    parser.add_argument("--out", type=Path, default=home())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        if options.quick:
            quick_pair(options)
        if None in (options.spiking, options.twin, options.data):
            parser.error("give --spiking, --twin and --data; --quick trains a pair")
        facts = ship(options)
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    # what lies elsewhere is not shipped
    if options.out == home():
        write_result("shipped", facts)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
