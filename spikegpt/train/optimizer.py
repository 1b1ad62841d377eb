"""RWKV's parameter groups, Muon beside AdamW, and the optimizer's state as plain tensors."""

from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..common.errors import SpikegptError
from ..config import TrainConfig
from ..model.mixers import Mixer, rate_scales, undecayed
from .latent import LatentWeights
from .units import CurrentUnits


def make_optimizer(model: nn.Module, config: TrainConfig, latent: LatentWeights | None = None) -> torch.optim.Optimizer:
    """Return AdamW, or Muon beside it, with RWKV's groups; it steps the `latent` weights of a model of a few bits.

    What a mixer's `rate_scales` name learns faster; weight decay is on matrices only, and not on what its `undecayed`
    names. Steps are in the units of `config.learn_in`. What `config.freeze` names asks for no gradient from now on;
    `config.lr_scales` multiplies the rates of what it names.

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
    scales, excepted = rate_scales(model), undecayed(model)
    orthogonalised = set(_block_matrices(model)) if config.optimizer == "muon" else set()
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
            continue
        scale, is_muon = scales.get(name, 1.0) * factors.get(name, 1.0), parameter in orthogonalised
        if is_muon:
            # one schedule for both, in units of AdamW's rate
            scale *= config.muon_lr / config.lr if config.lr else 0.0
        is_matrix = sum(side > 1 for side in parameter.shape) >= 2
        decay = config.weight_decay if is_matrix and name not in excepted else 0.0
        groups.setdefault((is_muon, scale, decay), []).append(parameter)

    def options(of_muon: bool) -> list[dict[str, Any]]:
        return [
            {"params": members, "lr_scale": scale, "weight_decay": decay}
            for (is_muon, scale, decay), members in groups.items()
            if is_muon == of_muon
        ]

    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    adamw: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.adam_eps, "fused": fused}
    parts: list[torch.optim.Optimizer] = []
    if found := options(of_muon=True):
        parts.append(torch.optim.Muon(found, lr=config.muon_lr, momentum=config.muon_momentum))
    if found := options(of_muon=False):
        parts.append(torch.optim.AdamW(found, **adamw))
    optimizer = parts[0] if len(parts) == 1 else Together(parts)
    units = CurrentUnits(model) if config.learn_in == "currents" else None
    # latent weights are stored ones, so they come first and go last
    for part in (latent, units):
        if part is not None:
            optimizer.register_step_pre_hook(part.enter)
    for part in (units, latent):
        if part is not None:
            optimizer.register_step_post_hook(part.leave)
    return optimizer


def _block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices between the embedding and the head: those of linear layers within mixers."""
    mixers = (module for module in model.modules() if isinstance(module, Mixer))
    layers = (module for mixer in mixers for module in mixer.modules() if isinstance(module, nn.Linear))
    return [cast(nn.Parameter, layer.weight) for layer in layers]


class Together(torch.optim.Optimizer):
    """Several optimizers as one: a list of groups, a state by parameter, a step."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let each part work on its groups of the list, and on the one state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = list(islice(groups, len(part.param_groups)))
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


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
