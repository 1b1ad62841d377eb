"""What a training takes of every GPU, and sends, with 1, 8 and 64 of them: computed from sizes measured here.

    python benchmarks/scale_plan.py [--windows 8] [--quick]

DDP keeps all of weights, gradients and Adam's two moments in every process, and adds up gradients; `train --shard`
(FSDP) keeps a share of each and gathers block after block. What a token leaves for the backward pass is measured on
small models with torch's hooks for saved tensors, in float32: it grows with layers x channels, with channels, and with
the vocabulary; the three numbers are fitted to three models and tried on a fourth. Nothing here was run on 64 GPUs.
Writes results/scale_plan.json. Last line: JSON with what the fourth model saves over what the three foretell.
"""

import argparse
import json
import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from spikegpt.common.tables import columns
from spikegpt.config import ModelConfig, model_preset
from spikegpt.model.network import SpikeGPT, parameters_of

FLOAT32 = 4
# weight, gradient and Adam's two moments; DDP's buckets are the gradients, as the trainer sets it
COPIES = 4
# torch's: gradients are added up when so many bytes of them are there
BUCKET_BYTES = 25 * 2**20
MODELS = {
    "spikegpt-216m": model_preset("spikegpt-216m"),
    "1.5B: 24 x 2048": ModelConfig(n_layer=24, n_embd=2048, ctx_len=1024, vocab_size=50277, spiking_head=True),
    "7B: 32 x 4096": ModelConfig(n_layer=32, n_embd=4096, ctx_len=1024, vocab_size=50277, spiking_head=True),
}


class Saved(NamedTuple):
    """Bytes that one token leaves for the backward pass: per channel of a layer, per channel, per word."""

    layer_channel: float
    channel: float
    word: float

    def per_token(self, config: ModelConfig) -> float:
        C = config.n_embd
        return self.layer_channel * config.n_layer * C + self.channel * C + self.word * config.vocab_size


class Plan(NamedTuple):
    """What one process holds, and sends in one optimizer step."""

    state_bytes: float
    """weights, gradients, moments; of FSDP also the two largest parts, gathered: one computes, one is on its way"""
    sent_bytes: float
    messages: int


def ddp(parameters: int, processes: int) -> Plan:
    """All-reduce in a ring: a bucket goes round twice in as many pieces as there are processes."""
    others, buckets = processes - 1, math.ceil(FLOAT32 * parameters / BUCKET_BYTES)
    sent = 2 * others / processes * FLOAT32 * parameters
    return Plan(COPIES * FLOAT32 * parameters, sent, 2 * others * buckets)


def fsdp(parameters: int, parts: int, largest: int, processes: int) -> Plan:
    """Each of `parts` is gathered forward and backward, and its gradients are added up where they belong: three rings.

    Args:
        largest: parameters of the largest part.
    """
    others = processes - 1
    state = COPIES * FLOAT32 * parameters / processes + 2 * FLOAT32 * largest * (processes > 1)
    return Plan(state, 3 * others / processes * FLOAT32 * parameters, 3 * others * parts)


def parts_of(config: ModelConfig) -> tuple[int, int]:
    """Return (parts that `train --shard` gathers one by one, parameters of the largest)."""
    block = parameters_of(config) - parameters_of(ModelConfig(**{**vars(config), "n_layer": config.n_layer - 1}))
    # the embedding, the first norm, the blocks, and the last norm with the head
    return config.n_layer + 3, max(block, config.vocab_size * config.n_embd)


def saved_per_token(config: ModelConfig, tokens: int = 32) -> float:
    """Measure the bytes that a token leaves for the backward pass, loss included; weights are not counted."""
    model = SpikeGPT(config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(config.vocab_size, (4, tokens + 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(ids[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    # until here all that was saved is alive, so no two have had one address
    del loss
    return sum(found.values()) / (4 * tokens)


def fit() -> tuple[Saved, float]:
    """Return what three models say of any, and what a fourth saves over what they foretell."""
    base = {"n_embd": 128, "ctx_len": 32, "spiking_head": True}
    small, deep, wordy = (
        saved_per_token(ModelConfig(n_layer=layers, vocab_size=words, **base))
        for layers, words in ((2, 512), (4, 512), (2, 2048))
    )
    word, layer_channel = (wordy - small) / 1536, (deep - small) / (2 * 128)
    saved = Saved(layer_channel, (small - 2 * 128 * layer_channel - 512 * word) / 128, word)
    other = ModelConfig(n_layer=3, n_embd=256, ctx_len=32, vocab_size=1024, spiking_head=True)
    return saved, saved_per_token(other) / saved.per_token(other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8, help="of ctx_len tokens, per process")
    parser.add_argument("--quick", action="store_true", help="publish nothing")
    options = parser.parse_args()
    torch.manual_seed(0)
    saved, foretold = fit()
    rows = [["model", "GPUs", "how", "weights, gradients, Adam", "activations", "sent per step", "messages"]]
    plans = []
    for name, config in MODELS.items():
        parameters, (parts, largest) = parameters_of(config), parts_of(config)
        activations = saved.per_token(config) * options.windows * config.ctx_len
        for processes in (1, 8, 64):
            both = {"DDP": ddp(parameters, processes), "FSDP": fsdp(parameters, parts, largest, processes)}
            for how, plan in list(both.items())[: 1 if processes == 1 else 2]:
                sizes = [f"{size / 1e9:.1f} GB" for size in (plan.state_bytes, activations, plan.sent_bytes)]
                rows.append([name, str(processes), how if processes > 1 else "alone", *sizes, f"{plan.messages:,}"])
                plans.append(
                    {"model": name, "parameters": parameters, "processes": processes, "how": how}
                    | plan._asdict()
                    | {"activation_bytes": activations}
                )
    print(columns(rows))
    print(
        f"a token saves {saved.layer_channel:.1f} bytes per channel of a layer, {saved.channel:.1f} per channel, "
        f"{saved.word:.1f} per word of the vocabulary"
    )
    if not options.quick:
        from measure import write_result

        write_result(
            "scale_plan",
            {
                "saved_bytes": saved._asdict(),
                "measured_over_foretold": round(foretold, 4),
                "windows": options.windows,
                "plans": plans,
            },
        )
    print(json.dumps({"measured_over_foretold": round(foretold, 4)}))


if __name__ == "__main__":
    main()
