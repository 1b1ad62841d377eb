"""RWKV's parameter groups, and the optimizer's state as plain tensors."""

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..common.errors import SpikegptError
from ..config import TrainConfig
from ..model.mixers import rate_scales


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return Adam with RWKV's groups: what a mixer's `rate_scales` name learns faster; weight decay on matrices only.

    What `config.freeze` names asks for no gradient from now on; `config.lr_scales` multiplies the rates of what it
    names.

    Raises:
        SpikegptError: a pattern names no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = {name for pattern in config.freeze for name in _matching(pattern, names, "--freeze")}
    if len(frozen) == len(names):
        raise SpikegptError(f"--freeze {' '.join(config.freeze)} leaves nothing to train")
    factors: dict[str, float] = {}
    for pattern, _, factor in (entry.rpartition("=") for entry in config.lr_scales):
        factors |= dict.fromkeys(_matching(pattern, names, "--lr-scales"), float(factor))
    scales = rate_scales(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
            continue
        scale = scales.get(name, 1.0) * factors.get(name, 1.0)
        is_matrix = sum(side > 1 for side in parameter.shape) >= 2
        decay = config.weight_decay if is_matrix else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    options = [
        {"params": members, "lr_scale": scale, "weight_decay": decay} for (scale, decay), members in groups.items()
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(options, lr=config.lr, betas=config.betas, eps=config.adam_eps, fused=fused)


def _matching(pattern: str, names: list[str], flag: str) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise SpikegptError(
            f"{flag}: no parameter is named like {pattern!r}; there are {', '.join(names[:3])}, ... {names[-1]}"
        )
    return found


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as name -> tensor, for a safetensors file."""
    states = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": value for index, state in states.items() for name, value in state.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
