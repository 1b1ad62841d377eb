"""Time one training step of the published spiking block against its dense twin, alternating, at the sizes of `small`.

    python benchmarks/train_step.py [--threads 2] [--quick]

A step is forward, backward and the optimizer at batch 8 x 512 tokens. Last line: JSON with spiking_over_twin.
"""

import argparse
import json

import torch
from measure import alternate, ratio, write_result
from torch.nn import functional as F

from spikegpt.config import SPIKING, model_preset, train_preset
from spikegpt.model.network import SpikeGPT
from spikegpt.train.optimizer import make_optimizer


def make_step(spiking: str, batch: int, tokens: int):
    torch.manual_seed(0)
    model = SpikeGPT(model_preset("small", spiking=spiking))
    optimizer = make_optimizer(model, train_preset("small"))
    ids = torch.randint(0, model.config.vocab_size, (batch, tokens + 1))

    def step() -> None:
        logits = model(ids[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="7 repetitions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    times = alternate(
        {name: make_step(name, 8, 512) for name in SPIKING}, 7 if options.quick else options.repetitions, warmup=2
    )
    overhead = ratio(times["output"], times["none"])
    print(f"spiking step / dense step: {overhead['median']} (quartiles {overhead['quartiles']})")
    if not options.quick:
        write_result("train_step", {"spiking_over_twin": overhead, "batch": 8, "tokens": 512, "preset": "small"})
    print(json.dumps({"spiking_over_twin": overhead["median"]}))


if __name__ == "__main__":
    main()
