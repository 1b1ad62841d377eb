"""Neurons beside each other in the spike-driven block, each trained as the others are, against the same dense twin.

    python benchmarks/neurons.py --data NOVELS                 2.0M, 2,000 steps of 16 x 128 (4M tokens), one seed
    python benchmarks/neurons.py --data NOVELS --seeds 0 1 2
    python benchmarks/neurons.py --data NOVELS --file MINE.py  neurons of your own too
    python benchmarks/neurons.py --quick                       a minute, the built-in corpus, no published number

Ours are in NEURONS, as flags of `spikegpt train`. MINE.py has a dictionary NEURONS of its own, name -> what makes the
neurons of a site (docs/your_own_neuron.md), SpikingJelly's and snnTorch's among them. All learn by tax.py's recipe, at
a budget of COMPARED of the dense products and, those of NEURON_AT_SMALL, of SMALL. Runs are kept beside tax.py's, whose
twins they take. One thread each, `--jobs` at once.

Bits, firing and operations are those of tax.py. Unit spikes are those that products read, per token. Of a neuron with
memory `bits_without_memory` says what is left when its potential is forgotten after every token. Decoding is in the
engine, all in turn. Writes results/neurons.json. Last line: JSON with binary_tax and binary_tax_at_0.10, of the neuron
BINARY, and by neuron bits, tax, firing, unit_spikes.
"""

import argparse
import dataclasses
import json
import multiprocessing
import runpy
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from family import decoding
from measure import commit, write_result
from sweep import Configuration, trained
from tax import COMPARED, COUNTED, DENSE, SIZES, SMALL, STEPS, STUDENT, evaluate
from torch.utils._pytree import tree_leaves

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig, NeuronConfig, TrainConfig
from spikegpt.data.prepare import prepare
from spikegpt.evaluate.perplexity import evaluate_stream
from spikegpt.model.mixers.contract import NeuronFactory
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import LIF
from spikegpt.train.journal import read_metrics
from spikegpt.train.trainer import resume, train

ONE_BIT = {"levels": 1, "signed": False, "hidden_levels": 1}
LEARNED_LEAK = {"membrane_decay": 0.1, "learnable_decay": True}
NEURONS: dict[str, Configuration] = {
    "-8 to 8": {},
    "-4 to 4": {"levels": 4, "hidden_levels": 8},
    "0 to 8": {"signed": False},
    "-1, 0, 1": {"levels": 1, "hidden_levels": 1},
    "0, 1": ONE_BIT,
    "0, 1, leak 0.5": {**ONE_BIT, "membrane_decay": 0.5},
    "0, 1, learned leak": {**ONE_BIT, **LEARNED_LEAK},
    "-8 to 8, leak 0.5": {"membrane_decay": 0.5},
    "-8 to 8, learned leak": LEARNED_LEAK,
    "-8 to 8, learned leak, never reset": {**LEARNED_LEAK, "reset": "none"},
}
# the best that remembers and sends one bit at a time
BINARY = "-8 to 8, learned leak, never reset"
NEURON_AT_SMALL = (BINARY,)


def run_of(neuron: str, seed: int, budget: float = COMPARED) -> str:
    words = neuron.replace(",", "").replace(" ", "-")
    return f"neuron-{words}-{seed}" + ("" if budget == COMPARED else f"-{budget}")


def configurations(options: argparse.Namespace, own: list[str]) -> dict[str, Configuration]:
    """Return what is to be trained, our neurons and `own` ones, and the twins."""
    shared = {**options.sizes, "data": options.data, "sample_every": 0, "eval_every": 0, "keep": 1}
    found: dict[str, Configuration] = {}
    for seed in options.seeds:
        always = {**shared, "seed": seed, "steps": options.steps}
        found[f"twin-{seed}"] = {**always, **DENSE}
        for name, changes in {**options.neurons, **{key: {} for key in own}}.items():
            for budget in (COMPARED, SMALL) if name in NEURON_AT_SMALL else (COMPARED,):
                found[run_of(name, seed, budget)] = {**always, **STUDENT, "synop_budget": budget, **changes}
    return found


def factories_of(file: Path | None) -> dict[str, NeuronFactory]:
    """Return the NEURONS of a Python file; SpikegptError if it has none."""
    if file is None:
        return {}
    found = runpy.run_path(str(file)).get("NEURONS")
    if not isinstance(found, dict) or not found or not all(map(callable, found.values())):
        raise SpikegptError(f"{file} has no NEURONS = {{name: what makes the neurons of a site}}, got {found!r:.80}")
    return found


def train_own(file: Path, name: str, run: Path, configuration: Configuration) -> int:
    """Train a model with the neurons `name` of a file, or go on; return its tokens per second."""
    torch.set_num_threads(1)
    factory = factories_of(file)[name]
    if (run / "config.json").exists():
        done = resume(run, neuron=factory, quiet=True)
    else:
        rest = dict(configuration)
        neuron = {key: rest.pop(key) for key in vars(NeuronConfig()) if key in rest}
        model = {item.name: rest.pop(item.name) for item in dataclasses.fields(ModelConfig) if item.name in rest}
        config = ModelConfig(**model)
        config = dataclasses.replace(config, neuron=dataclasses.replace(config.neuron, **neuron))
        rest["data"] = tuple(rest["data"])
        done = train(config, TrainConfig(threads=1, **rest), run, neuron=factory, quiet=True)
    if done.interrupted:
        raise SpikegptError(f"the training of {run} was interrupted; the same command goes on")
    return round(statistics.median(line["tokens_per_s"] for line in read_metrics(run) if line["kind"] == "train"))


@torch.inference_mode()
def examine(run: Path, data: list[str], file: Path | None, own: str | None) -> dict:
    """Return what `tax.evaluate` does, unit spikes per token, bytes of a text's state, and bits without memory."""
    factory = factories_of(file)[own] if own else None
    facts = evaluate(run, data, factory)
    kept = run.parent / f"{run.name}.neurons.json"
    if not kept.exists():
        model, tokenizer = load_model(run, neuron=factory)
        valid = np.asarray(prepare(data, tokenizer).split("valid"))
        output = model(torch.from_numpy(valid[:COUNTED].astype(np.int64))[None])
        more = {
            "unit_spikes": unit_spikes(model, output.spikes),
            "state_bytes": sum(part.nbytes for part in tree_leaves(output.state) if part is not None),
        }
        if forget(model):
            more["bits_without_memory"] = evaluate_stream(model, valid, tokenizer).bits_per_byte
        kept.write_text(json.dumps(more))
    return facts | json.loads(kept.read_text())


def unit_spikes(model: SpikeGPT, spikes: dict[str, torch.Tensor]) -> float:
    """Return the unit spikes per token that products read; a spike of n is n."""
    read = [spikes[name] for name in model.synapses()]
    return sum(spike.abs().sum().item() for spike in read) / (read[0].numel() / read[0].shape[-1]) if read else 0.0


def forget(model: SpikeGPT) -> bool:
    """Let all neurons of ours that remember keep nothing from token to token; return whether there are any."""
    leaky = [module for module in model.modules() if isinstance(module, LIF) and not module.is_memoryless]
    for neuron in leaky:
        neuron.config = dataclasses.replace(neuron.config, membrane_decay=0.0, learnable_decay=False)
    return bool(leaky)


def summarise(found: dict[str, dict], names: list[str], seeds: list[int]) -> dict:
    """Return what the runs come to, by neuron; taxes are of the means over the seeds."""
    twin = statistics.mean(found[f"twin-{seed}"]["bits"] for seed in seeds)

    def of(name: str, budget: float) -> dict:
        runs = [found[run_of(name, seed, budget)] for seed in seeds]
        means = {what: statistics.mean(run[what] for run in runs) for what in runs[0] if runs[0][what] is not None}
        return {**means, "tax": means["bits"] / twin - 1}

    neurons = {name: of(name, COMPARED) for name in names}
    summary: dict = {"dense_bits": twin, "neurons": neurons}
    if BINARY in names:
        summary |= {"binary_tax": neurons[BINARY]["tax"], "binary_tax_at_0.10": of(BINARY, SMALL)["tax"]}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--neurons", nargs="+", choices=NEURONS, default=list(NEURONS), metavar="NAME")
    parser.add_argument("--file", type=Path, help="Python file with neurons of your own")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, help="by default those of tax.py, runs/tax-STEPS")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    size = "quick" if options.quick else "2.0M"
    options.sizes, options.steps = SIZES[size], options.steps or STEPS[size]
    if options.quick:
        options.runs, options.neurons = Path(tempfile.mkdtemp()), [*options.neurons[:1], BINARY]
    options.neurons = {name: NEURONS[name] for name in options.neurons}
    out = (options.runs or Path(f"runs/tax-{options.steps}")).absolute()
    options.data = [str(Path(given).absolute()) if Path(given).exists() else given for given in options.data]
    try:
        own = list(factories_of(options.file))
        runs = configurations(options, own)
        by_run = {run_of(name, seed): name for name in own for seed in options.seeds}
        results = trained(out, {name: one for name, one in runs.items() if name not in by_run}, options.jobs, commit())
        pace = {name: results[name]["tokens_per_s"] for name in runs if name not in by_run}
        with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            begun = {
                run: pool.submit(train_own, options.file, name, out / run, runs[run]) for run, name in by_run.items()
            }
            pace |= {run: one.result() for run, one in begun.items()}
            facts = {run: pool.submit(examine, out / run, options.data, options.file, by_run.get(run)) for run in runs}
            found = {run: {**one.result(), "training_tokens_per_s": pace[run]} for run, one in facts.items()}
        first = [run_of(name, options.seeds[0]) for name in options.neurons]
        decoded = decoding([out / run for run in first], 2 if options.quick else 15)
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    summary = summarise(found, [*options.neurons, *own], options.seeds)
    for name, run in zip(options.neurons, first, strict=True):
        summary["neurons"][name]["tokens_per_s"] = decoded[run]
    tokens = options.steps * options.sizes["batch_size"] * options.sizes["ctx_len"]
    summary |= {"tokens": tokens, "seeds": options.seeds}
    if not options.quick:
        recipe = {"sizes": options.sizes, "student": STUDENT, "neurons": options.neurons}
        write_result("neurons", {**summary, "corpus": Path(options.data[0]).name, "recipe": recipe, "runs": found})
    shown = "bits", "tax", "firing", "unit_spikes"
    summary["neurons"] = {name: {what: facts[what] for what in shown} for name, facts in summary["neurons"].items()}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
