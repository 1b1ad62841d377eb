"""What a model consists of: sizes, configuration, tensors."""

import difflib
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..checkpoint.run import find_model, training_of
from ..checkpoint.shipped import is_there
from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..config import PRESETS, model_preset, train_preset
from ..model.network import SpikeGPT
from ..model.quantised import stored_bytes


def describe_model(what: str, with_tensors: bool = False) -> dict[str, Any]:
    """Return sizes and configuration of a preset, run or checkpoint as plain values, and each tensor's shape by name.

    Raises:
        SpikegptError: `what` is none of them.
    """
    if what in PRESETS:
        source, config, training = f"preset {what}", model_preset(what), train_preset(what).to_dict()
        with torch.device("meta"):
            model = SpikeGPT(config, init=False)
    elif (near := difflib.get_close_matches(what, PRESETS, n=1)) and not is_there(Path(what)):
        raise SpikegptError(f"{what!r} is neither a folder nor a preset; did you mean {near[0]!r}?")
    else:
        model = load_model(what)[0]
        # what speaks against it has been said
        folder = find_model(Path(what), warn=lambda message: None)
        source, training = str(folder), training_of(folder)
    config = model.config
    with torch.no_grad(), torch.device("meta"):
        state = SpikeGPT(config, init=False).eval()(torch.zeros(1, 1, dtype=torch.long)).state
    parts = [part for part in tree_leaves(state) if part is not None]
    return {
        "source": source,
        "parameters": model.count_parameters(),
        "parameter_bytes": stored_bytes(model),
        "state_bytes": sum(part.numel() * part.element_size() for part in parts),
        "matrix_macs_per_token": sum(
            p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name != "emb.weight"
        ),
        # of imported models nothing says so
        **({"training_precision": training["precision"]} if "precision" in training else {}),
        "config": config.to_dict(),
        **(
            {"tensors": {name: " x ".join(map(str, tensor.shape)) for name, tensor in model.state_dict().items()}}
            if with_tensors
            else {}
        ),
    }
