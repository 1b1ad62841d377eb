"""What the faults of the published inference script cost: one published block, with each fault alone and with all.

    python benchmarks/published_faults.py RUN   a run, a checkpoint, or what `spikegpt import` wrote
    python benchmarks/published_faults.py RUN --data FILE   on another text than the run's own test split
    python benchmarks/published_faults.py RUN --rescale-every 2   for a model of few layers
    python benchmarks/published_faults.py --quick   under a minute, a model trained on the spot, nothing written

The text is read in trials, windows that do not overlap, each from an empty state. The faults: the embedding stays real
where training made it binary; layers are rescaled, which is exact for dense RWKV-4 and not before a neuron; a trial
starts with the membranes of the trial before. Last line: JSON with bits per byte of each.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from measure import write_result

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import model_preset, train_preset
from spikegpt.evaluate.perplexity import evaluate_windows
from spikegpt.evaluate.runs import read_text
from spikegpt.model.network import SpikeGPT
from spikegpt.train.trainer import train


def variant(model: SpikeGPT, **changes) -> SpikeGPT:
    """The same weights under another configuration."""
    changed = SpikeGPT(dataclasses.replace(model.config, **changes), init=False)
    changed.load_state_dict(model.state_dict())
    return changed


def faults(rescale_every: int) -> dict[str, tuple[dict, bool]]:
    """Name -> (what changes in the configuration, whether membranes are kept)."""
    trained = {"binary_embedding": True, "rescale_every": 0}
    real, rescaled = {"binary_embedding": False}, {"rescale_every": rescale_every}
    return {
        "as trained": (trained, False),
        "embedding real": (trained | real, False),
        f"rescaled every {rescale_every}": (trained | rescaled, False),
        "membrane kept": (trained, True),
        "all": (trained | real | rescaled, True),
    }


def train_quickly() -> Path:
    run = Path(tempfile.mkdtemp()) / "run"
    train(
        model_preset("tiny", spiking="output"),
        train_preset("tiny", steps=60, eval_every=60, sample_every=0, threads=1),
        run,
        quiet=True,
    )
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, help="text file; by default the run's own test split")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--ctx-len", type=int, help="tokens per trial; by default the model's ctx_len")
    parser.add_argument("--rescale-every", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.run, options.tokens, options.rescale_every = train_quickly(), 4096, 2
    if options.run is None:
        parser.error("give a run of the published block: spikegpt train --spiking output, or spikegpt import")
    model, tokenizer = load_model(options.run)
    if model.config.spiking != "output":
        parser.error(
            f"{options.run} is a model with spiking={model.config.spiking!r}; "
            "the faults are of the published block, 'output'"
        )
    if options.rescale_every >= model.config.n_layer:
        print(
            f"note: the model has {model.config.n_layer} layers, "
            f"so rescaling every {options.rescale_every} reaches no neuron"
        )
    tokens, source = read_text(options.run, tokenizer, file=options.data, limit=options.tokens)
    ctx_len = min(options.ctx_len or model.config.ctx_len, len(tokens) - 1)
    results = {}
    print(f"{'':20s}{'bits/byte':>12s}{'difference':>12s}{'firing rate':>13s}")
    for name, (changes, keeps) in faults(options.rescale_every).items():
        found = evaluate_windows(variant(model, **changes), tokens, tokenizer, ctx_len, ctx_len, keep_membrane=keeps)
        difference = found.bits_per_byte / results["as trained"]["bits_per_byte"] - 1 if results else 0.0
        results[name] = {
            "bits_per_byte": found.bits_per_byte,
            "difference": difference,
            "firing_rate": found.firing_rate,
        }
        print(f"{name:20s}{found.bits_per_byte:12.4f}{difference:+12.3%}{found.firing_rate:13.2%}")
    if not options.quick:
        command = (
            "python benchmarks/published_faults.py RUN --rescale-every "
            f"{options.rescale_every} --tokens {options.tokens}"
        )
        # where the text lay is nobody's business
        text = {"text": Path(source).name, "tokens": len(tokens), "protocol": f"windows of {ctx_len}, stride {ctx_len}"}
        facts = {
            "parameters": model.count_parameters(),
            "config": model.config.to_dict(),
            "rescale_every": options.rescale_every,
        }
        write_result("published_faults", {"command": command, **text, **facts, "results": results})
    print(json.dumps({name: round(result["bits_per_byte"], 5) for name, result in results.items()}))


if __name__ == "__main__":
    main()
