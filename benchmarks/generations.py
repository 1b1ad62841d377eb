"""What the generations of RWKV differ in before anything is trained: parameters, state, operations of a token.

    python benchmarks/generations.py [--n-layer 4 --n-embd 192]

Dense models of one width, ctx_len 128 and the vocabulary of bytes, as they begin. Products are all of them, head
included, whether a factor is zero or not. Operations are those of TOKENS tokens read at once, per token. Nothing is
timed, and nothing drawn changes a number. Writes results/generations.json; last line: JSON by mixer.
"""

import argparse
import json

import torch
from measure import write_result
from tax import operations
from torch.utils._pytree import tree_leaves

from neuromorphic import OpCounter
from neuromorphic.report.measurement import layer_ops
from spikegpt.config import ModelConfig
from spikegpt.model.network import SpikeGPT

GENERATIONS = ("rwkv4", "rwkv5", "rwkv6", "rwkv7")
TOKENS = 64


@torch.inference_mode()
def examine(config: ModelConfig) -> dict[str, int]:
    """Return parameters, bytes of a text's state, and by token products, operations of the state, elementwise ones."""
    model = SpikeGPT(config).eval()
    tokens = torch.randint(config.vocab_size, (1, TOKENS))
    with OpCounter(model) as counter, counter.phase("prefill"):
        state = model(tokens).state
    tally = counter.tally()
    others = operations(tally)
    return {
        "parameters": model.count_parameters(),
        "state_bytes": sum(part.nbytes for part in tree_leaves(state) if part is not None),
        "products": round(sum(layer.dense_ops for layer in layer_ops(tally, "prefill", None))),
        **{kind: round(others[kind]) for kind in ("state", "elementwise")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-layer", type=int, default=4)
    parser.add_argument("--n-embd", type=int, default=192)
    sizes = vars(parser.parse_args())
    found = {mixer: examine(ModelConfig(mixer=mixer, spiking="none", ctx_len=128, **sizes)) for mixer in GENERATIONS}
    write_result("generations", {"sizes": sizes, "mixers": found})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
