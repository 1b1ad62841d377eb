"""How much of their currents spikes carry, by site, and how much of a model's bits is noise that spikes make.

    python benchmarks/spike_noise.py RUN [RUN ...] --data NOVELS
    python benchmarks/spike_noise.py --quick            a minute: a small model, trained for it; no published number

By site, over the same text: the share of neurons that fire, the unit spikes of one that does, `carried`, the share of
the currents' energy (sum of squares) in neurons that fire, `fit`, the squared correlation of spikes and currents, by
channel and weighted by energy, and `kurtosis`, how heavy the tails of the currents are (3 is a Gaussian's). What is not
carried is noise in the product that reads the spikes, and heavy tails let few spikes carry much.

Noise: COPIES copies of the model whose thresholds differ by a thousandth predict alike on average, and each text
otherwise, for spikes jump where currents do not. `noise` is the share of one copy's bits that the mean of their
predictions saves. A dense model saves nothing.
Last line: JSON with bits, firing, carried, kurtosis and noise of each run; the first three weighted by synapses.
"""

import argparse
import json
import math
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import commit, write_result
from sweep import trained
from torch import Tensor, nn
from torch.nn import functional as F

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.data.prepare import prepare
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import LIF

TEXTS, LENGTH = 32, 512
# at the beginning of a text there is little to predict from
SKIPPED = 64
COPIES, CHANGE = 8, 1e-3
QUICK = {"n_layer": 2, "n_embd": 48, "ctx_len": 128, "batch_size": 8, "steps": 60, "synop_budget": 0.2}


def site_facts(neuron: nn.Module, inputs: tuple, output: tuple, facts: dict, name: str) -> None:
    """Note what one call of a layer of neurons made of its currents (B, T, C)."""
    current, spikes = inputs[0][:, SKIPPED:].flatten(0, 1).float(), output[0][:, SKIPPED:].flatten(0, 1).float()
    energy, events = current.square(), spikes != 0
    together, apart = (current * spikes).sum(0).square(), energy.sum(0) * spikes.square().sum(0)
    of_channels = energy.sum(0) / energy.sum()
    facts[name] = {
        "firing": events.float().mean().item(),
        "unit_spikes_per_event": (spikes.abs().sum() / events.sum().clamp(min=1)).item(),
        "carried": ((energy * events).sum() / energy.sum()).item(),
        "fit": (together / apart.clamp(min=1e-30) * of_channels).sum().item(),
        "kurtosis": (energy.square().mean() / energy.mean().square()).item(),
    }


@torch.no_grad()
def noise_of(model: SpikeGPT, ids: Tensor) -> dict[str, float]:
    """Return bits per token of one copy on `ids` (B, T + 1), of the mean of all, and what that saves."""
    neurons = [module for module in model.modules() if isinstance(module, LIF) and module.config.learnable_threshold]
    begun = [neuron.log_threshold.clone() for neuron in neurons]
    generator = torch.Generator().manual_seed(0)
    wanted = ids[:, SKIPPED + 1 :].unsqueeze(-1)
    alone, together = [], torch.zeros(())
    for _ in range(COPIES):
        for neuron, threshold in zip(neurons, begun, strict=True):
            neuron.log_threshold.copy_(threshold + CHANGE * torch.randn(threshold.shape, generator=generator))
        predicted = F.log_softmax(model(ids[:, :-1]).logits[:, SKIPPED:].float(), dim=-1).gather(-1, wanted)
        alone.append(-predicted.mean().item() / math.log(2))
        together = together + predicted.exp() / COPIES
    for neuron, threshold in zip(neurons, begun, strict=True):
        neuron.log_threshold.copy_(threshold)
    one, all_of_them = sum(alone) / COPIES, -together.log().mean().item() / math.log(2)
    return {"bits": one, "bits_of_the_mean": all_of_them, "noise": 1 - all_of_them / one}


def measure(run: Path, data: list[str]) -> dict:
    """Return the facts of a run on the valid split of `data`, by site and in all."""
    model, tokenizer = load_model(run)
    sites = {name: placed for name, placed in model.sites().items() if placed.products}
    if not sites:
        raise SpikegptError(f"{run} has no neurons that a product reads; give a run of --spiking input")
    valid = torch.from_numpy(np.asarray(prepare(data, tokenizer).split("valid")).astype(np.int64))
    texts = min(TEXTS, len(valid) // (LENGTH + 1))
    if not texts:
        raise SpikegptError(f"the valid split has {len(valid)} tokens, want at least {LENGTH + 1}; give more text")
    ids, facts = valid[: texts * (LENGTH + 1)].view(texts, -1), {}
    hooks = [p.neuron.register_forward_hook(partial(site_facts, facts=facts, name=name)) for name, p in sites.items()]
    with torch.no_grad():
        model(ids[:, :-1])
    for hook in hooks:
        hook.remove()
    synapses = model.synapses()

    def mean(what: str) -> float:
        return sum(facts[name][what] * synapses[name] for name in sites) / sum(synapses.values())

    in_all = {what: mean(what) for what in ("firing", "carried", "fit")}
    in_all["kurtosis"] = float(np.median([facts[name]["kurtosis"] for name in sites]))
    return {**noise_of(model, ids), **in_all, "sites": facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        if options.quick:
            out = Path(tempfile.mkdtemp())
            quick = {**QUICK, "data": options.data, "spiking": "input", "sample_every": 0, "eval_every": 0}
            trained(out, {"quick": quick}, 1, commit())
            options.runs = [out / "quick"]
        if not options.runs:
            parser.error("name a run, or more; --quick trains one")
        found = {run.name: measure(run, options.data) for run in options.runs}
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    for name, facts in found.items():
        print(f"\n{name}")
        for site, of_site in facts["sites"].items():
            print(f"  {site:34s} " + "  ".join(f"{what} {value:.3f}" for what, value in of_site.items()))
    if not options.quick:
        write_result("spike_noise", {"corpus": Path(options.data[0]).name, "copies": COPIES, "runs": found})
    print(json.dumps({name: {k: v for k, v in facts.items() if k != "sites"} for name, facts in found.items()}))


if __name__ == "__main__":
    main()
