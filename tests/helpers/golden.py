"""Models and arrays that the authors' code has made, by name: tests/golden; and how ours are held against them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikegpt.config import ModelConfig
from spikegpt.model.network import SpikeGPT

GOLDEN = Path(__file__).parents[1] / "golden"
# stored model -> what its weights do not say
MODELS: dict[str, dict[str, Any]] = {
    "spikegpt_train_a": {"spiking": "output"},
    "rwkv4_a": {},
    "perspectives_a": {"perspectives": 3},
    "rwkv5_a": {"mixer": "rwkv5", "head_size": 16},
    "rwkv6_a": {"mixer": "rwkv6", "head_size": 16, "lora_ranks": (32, 64)},
    "rwkv7_a": {"mixer": "rwkv7", "head_size": 12, "lora_ranks": (7, 5, 3, 11), "n_layer": 3},
}


def stored_config(name: str, vocab_size: int, n_embd: int, **changes) -> ModelConfig:
    """The configuration of a stored model, of these sizes, with `changes`."""
    sizes = {"n_layer": 2, "n_embd": n_embd, "ctx_len": 64, "vocab_size": vocab_size}
    return ModelConfig(**{"spiking": "none", "dropout": 0.0, **sizes, **MODELS[name], **changes})


def load(name: str, dtype: torch.dtype):
    """(model with the stored weights, all stored arrays, ids, targets)."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    weights = {
        key.removeprefix("param."): torch.from_numpy(arrays[key]).to(dtype)
        for key in arrays.files
        if key.startswith("param.")
    }
    model = SpikeGPT(stored_config(name, *weights["emb.weight"].shape), init=False).to(dtype)
    model.load_state_dict(weights)
    return model, arrays, torch.from_numpy(arrays["idx"]).long(), torch.from_numpy(arrays["targets"]).long()


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    """The largest difference, as a share of the largest number of theirs."""
    theirs = torch.from_numpy(theirs).double()
    return ((ours.detach().double() - theirs).abs().max() / theirs.abs().max()).item()


def slopes(
    model: SpikeGPT, ids: Tensor, targets: Tensor, chosen: Sequence[Tensor], directions: Sequence[Tensor], step: float
) -> tuple[float, float]:
    """How fast the loss changes where the chosen parameters move along the directions: by autograd, by differences."""

    def loss(distance: float = 0.0) -> Tensor:
        with torch.no_grad():
            for parameter, direction in zip(chosen, directions, strict=True):
                parameter += distance * direction
        return F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())

    grads = torch.autograd.grad(loss(), chosen)
    slope = sum((grad * direction).sum().item() for grad, direction in zip(grads, directions, strict=True))
    with torch.no_grad():
        # at -2, -1, 1 and 2 steps, each reached from the one before: the central difference of fourth order
        far_behind, behind, ahead, far_ahead = loss(-2 * step), loss(step), loss(2 * step), loss(step)
    return slope, ((8 * (ahead - behind) - (far_ahead - far_behind)) / (12 * step)).item()
