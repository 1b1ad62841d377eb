"""One training step on this CPU: the spike-driven block and its dense twin, float32 and bfloat16, and others' ways.

    python benchmarks/train_step.py [--threads 2] [--repetitions 15] [--quick]

A step is forward, backward, clipping and the optimizer. At the sizes of `small`, batch 8 x 512 tokens:
  spiking_over_twin   the spike-driven step (with its budget of operations) over the dense one, both in bfloat16
  auto_over_float32   how much faster the dense step is in bfloat16, which `--precision auto` takes here
  share_of_products   how much of the dense step its matrix products take at the speed that torch reaches alone
At 4 layers of width 256, batch 8 x 256 tokens, the published block as it trains here by default against
  vs_published        the same block with SpikingJelly's LIF and the WKV as a loop in torch, float32
  vs_huggingface      transformers' RWKV (dense), float32
and against both in float32 as well. Last line: JSON with the medians of the ratios.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import torch
from measure import alternate, ratio, wait_as_command_line, write_result
from torch import nn
from torch.nn import functional as F

from spikegpt.common.memory import pages_kept
from spikegpt.config import ModelConfig, model_preset, train_preset
from spikegpt.kernels import backends
from spikegpt.model.mixers import Site
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import SpikingJellyNeuron
from spikegpt.train.losses import Reading, add_up, make_terms
from spikegpt.train.optimizer import make_optimizer

TRAINING = train_preset("small", optimizer="adamw")
BATCH, TOKENS = 8, 512
# of the comparison with others
THEIR_SIZES = {"n_layer": 4, "n_embd": 256, "ctx_len": 256, "vocab_size": 256, "dropout": 0.0}
# as if numba were not there: every kernel is the loop in torch that it is tested against
PLAIN_TORCH = {"numba": False}


def make_step(config: ModelConfig, batch: int, tokens: int, precision: str, published: bool = False) -> Callable:
    torch.manual_seed(0)
    model = SpikeGPT(config, published_neuron if published else None)
    optimizer = make_optimizer(model, TRAINING)
    terms = make_terms(TRAINING, model.synapses(), emits_spikes=config.spiking != "none")
    ids = torch.randint(0, config.vocab_size, (batch, tokens + 1))

    def step() -> None:
        with patch.dict(backends._installed, PLAIN_TORCH) if published else nullcontext():
            with autocast(precision):
                logits, _, spikes = model(ids[:, :-1])
            cross_entropy = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
            reading = Reading(TRAINING.steps, cross_entropy, logits, spikes, None)
            add_up({term.name: term(reading) for term in terms}).backward()
        finish(model, optimizer)

    return step


def published_neuron(site: Site) -> nn.Module:
    from spikingjelly.activation_based import neuron, surrogate

    return SpikingJellyNeuron(neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0), step_mode="m"))


def make_huggingface_step(batch: int, tokens: int) -> Callable:
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=THEIR_SIZES["vocab_size"],
        context_length=THEIR_SIZES["ctx_len"],
        hidden_size=THEIR_SIZES["n_embd"],
        num_hidden_layers=THEIR_SIZES["n_layer"],
        rescale_every=0,
        use_cache=False,
    )
    model = RwkvForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.randint(0, config.vocab_size, (batch, tokens + 1))

    def step() -> None:
        logits = model(ids[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        finish(model, optimizer)

    return step


def make_products(config: ModelConfig, batch: int, tokens: int, precision: str) -> Callable:
    """The matrix products of a dense step, forward and backward, of tensors of their own."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        shapes = [m.weight.shape for m in SpikeGPT(config).modules() if isinstance(m, nn.Linear)]
    operands = [
        [torch.randn(shape, dtype=dtype) for shape in ((batch * tokens, width), (out, width), (batch * tokens, out))]
        for out, width in shapes
    ]

    def products() -> None:
        for x, weight, grad in operands:
            _ = x @ weight.T, grad @ weight, grad.T @ x

    return products


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def finish(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of every kind of step, those of one size in turn."""
    configs = {name: model_preset("small", spiking=name) for name in ("none", "input")}
    ours = alternate(
        {
            f"{name} {precision}": make_step(config, BATCH, TOKENS, precision)
            for name, config in configs.items()
            for precision in ("no", "bf16")
        }
        | {"products": make_products(configs["none"], BATCH, TOKENS, "bf16")},
        repetitions,
        warmup=2,
    )
    block = ModelConfig(spiking="output", **THEIR_SIZES)
    tokens = THEIR_SIZES["ctx_len"]
    theirs = alternate(
        {
            "published": make_step(block, BATCH, tokens, "no", published=True),
            "huggingface": make_huggingface_step(BATCH, tokens),
            "ours no": make_step(block, BATCH, tokens, "no"),
            "ours bf16": make_step(block, BATCH, tokens, "bf16"),
        },
        repetitions,
        warmup=2,
    )
    return ours | theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="4 repetitions, no result written")
    options = parser.parse_args()
    wait_as_command_line()
    torch.set_num_threads(options.threads)
    # the way that says what is missing, once per kernel
    warnings.filterwarnings("ignore", ".*numba is missing")
    with pages_kept():
        seconds = measure(4 if options.quick else options.repetitions)
    pairs = {
        "spiking_over_twin": ("input bf16", "none bf16"),
        "spiking_over_twin_float32": ("input no", "none no"),
        "auto_over_float32": ("none no", "none bf16"),
        "auto_over_float32_spiking": ("input no", "input bf16"),
        "share_of_products": ("products", "none bf16"),
        "vs_published": ("published", "ours bf16"),
        "vs_published_float32": ("published", "ours no"),
        "vs_huggingface": ("huggingface", "ours bf16"),
        "vs_huggingface_float32": ("huggingface", "ours no"),
    }
    ratios = {name: ratio(seconds[above], seconds[below]) for name, (above, below) in pairs.items()}
    for name, found in ratios.items():
        print(f"{name:26} {found['median']:6.2f}   quartiles {found['quartiles']}")
    if not options.quick:
        least = {name: round(min(times), 4) for name, times in seconds.items()}
        about = {"preset": "small", "batch": BATCH, "tokens": TOKENS, "their_sizes": THEIR_SIZES}
        write_result("train_step", {"ratios": ratios, "least_seconds": least, **about})
    print(json.dumps({name: found["median"] for name, found in ratios.items()}))


if __name__ == "__main__":
    main()
