"""Models and arrays that the authors' code has made, by name: tests/golden."""

from pathlib import Path

import numpy as np
import torch

from spikegpt.config import ModelConfig
from spikegpt.model.network import SpikeGPT

GOLDEN = Path(__file__).parents[1] / "golden"
# stored model -> how spikes enter it
CASES = {"spikegpt_train_a": "output", "rwkv4_a": "none"}


def load(name: str, dtype: torch.dtype):
    """(model with the stored weights, all stored arrays, ids, targets)."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    weights = {
        key.removeprefix("param."): torch.from_numpy(arrays[key]).to(dtype)
        for key in arrays.files
        if key.startswith("param.")
    }
    vocab_size, n_embd = weights["emb.weight"].shape
    config = ModelConfig(n_layer=2, n_embd=n_embd, ctx_len=64, vocab_size=vocab_size, spiking=CASES[name], dropout=0.0)
    model = SpikeGPT(config, init=False).to(dtype)
    model.load_state_dict(weights)
    return model, arrays, torch.from_numpy(arrays["idx"]).long(), torch.from_numpy(arrays["targets"]).long()
