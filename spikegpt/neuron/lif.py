"""Neurons as modules: our LIF, and adapters for SpikingJelly's and snnTorch's.

Every neuron here maps a current (B, T, C) and a state to spikes (B, T, C) and the state after the last token, so that
a text may be read at once, in chunks, or token by token. The equations are in `kernels/lif/reference.py` and
`kernels/integer_lif/reference.py`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..config import NeuronConfig
from ..kernels import integer_lif, lif
from ..kernels.integer_lif.options import IntegerLIFOptions
from ..kernels.integer_lif.reference import count_spikes, integer_lif_step
from ..kernels.lif.options import LIFOptions
from ..kernels.lif.reference import lif_step
from ..kernels.surrogates import heaviside, surrogate_derivative

__all__ = [
    "LIF",
    "SnnTorchNeuron",
    "SpikingJellyNeuron",
    "check_alphabet",
    "count_spikes",
    "heaviside",
    "integer_lif",
    "integer_lif_step",
    "lif",
    "lif_step",
    "surrogate_derivative",
    "verified_spikes",
]

_is_verified = False


@contextmanager
def verified_spikes(on: bool = True) -> Iterator[None]:
    """Within this block every LIF checks that it emits its declared alphabet only; it costs a pass over the spikes."""
    global _is_verified
    before, _is_verified = _is_verified, on
    try:
        yield
    finally:
        _is_verified = before


def check_alphabet(spikes: Tensor, alphabet: tuple[int, int], who: str = "spikes") -> None:
    """Raise ValueError unless every element of `spikes` is a whole number from alphabet[0] to alphabet[1]."""
    lowest, highest = alphabet
    wrong = (spikes != spikes.round()) | (spikes < lowest) | (spikes > highest)
    if wrong.any():
        raise ValueError(
            f"{who}: {int(wrong.sum())} of {spikes.numel()} spikes are not whole numbers from {lowest} to {highest}, "
            f"the first is {spikes[wrong][0].item()}; the neuron does not emit its declared alphabet"
        )


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons, one per channel.

    `forward` is the scan form, over (B, T, C); `step` takes one token, (B, C). The state is the membrane potential
    (B, C), None at the start of a text, and always None in a memoryless neuron (membrane_decay 0). With
    `learnable_decay` the parameter `decay_logit` (C,) is trained and membrane_decay = sigmoid(decay_logit); with
    `learnable_threshold`, `log_threshold` (C,) and threshold = exp(log_threshold).
    """

    def __init__(self, channels: int, config: NeuronConfig | None = None, backend: str = "auto"):
        super().__init__()
        self.config, self.backend = config or NeuronConfig(), backend
        # one of the two is used, as `config.is_integer` says
        self._integer_options = IntegerLIFOptions(
            levels=self.config.levels,
            signed=self.config.signed,
            reset=self.config.reset,
            decay_input=self.config.decay_input,
        )
        self._binary_options = LIFOptions(
            # with one threshold per channel the potential is measured in thresholds, see `_binary`
            threshold=1.0 if self.config.learnable_threshold else self.config.threshold,
            reset=self.config.reset,
            reset_potential=self.config.reset_potential,
            decay_input=self.config.decay_input,
            detach_reset=self.config.detach_reset,
            surrogate=self.config.surrogate,
            slope=self.config.slope,
        )
        # see `anneal`; anything else than 1 acts in training only
        self.spike_share = 1.0
        if self.config.learnable_decay:
            decay = self.config.membrane_decay
            self.decay_logit = nn.Parameter(torch.full((channels,), math.log(decay / (1 - decay))))
        if self.config.learnable_threshold:
            self.log_threshold = nn.Parameter(torch.full((channels,), math.log(self.config.threshold)))

    @property
    def alphabet(self) -> tuple[int, int]:
        """Lowest and highest spike."""
        return self.config.alphabet

    @property
    def is_memoryless(self) -> bool:
        return self.config.membrane_decay == 0 and not self.config.learnable_decay

    @property
    def threshold(self) -> float | Tensor:
        return torch.exp(self.log_threshold) if self.config.learnable_threshold else self.config.threshold

    @property
    def membrane_decay(self) -> float | Tensor:
        return torch.sigmoid(self.decay_logit) if self.config.learnable_decay else self.config.membrane_decay

    @property
    def spike_worth(self) -> float | Tensor:
        """The current that one unit spike stands for: (1 + 1/levels) thresholds, for whole thresholds are counted,
        downwards.

        With it, and the best threshold for it, the squared error of spikes for Gaussian currents is within 1 % of the
        least that a worth of any size allows (levels 1, 2, 4, 8: 0.19, 0.10, 0.044, 0.017 of the variance).
        """
        return self.threshold * (1 + 1 / self.config.levels)

    def forward(self, current: Tensor, potential: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return (spikes (B, T, C), potential (B, C), or None if memoryless)."""
        spikes, potential = (
            self._integer(current, potential) if self.config.is_integer else self._binary(current, potential)
        )
        if _is_verified and not spikes.is_meta:
            check_alphabet(spikes.detach(), self.alphabet, f"LIF({self.extra_repr()})")
        if self.training and self.spike_share < 1:
            real = (current / self.spike_worth).to(spikes.dtype)
            spikes = torch.where(torch.rand(spikes.shape, device=spikes.device) < self.spike_share, spikes, real)
        return spikes, None if self.is_memoryless else potential

    def _integer(self, current: Tensor, potential: Tensor | None) -> tuple[Tensor, Tensor]:
        return integer_lif(
            current,
            potential,
            membrane_decay=self.membrane_decay,
            threshold=self.threshold,
            options=self._integer_options,
            backend=self.backend,
        )

    def _binary(self, current: Tensor, potential: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.config.learnable_threshold:
            # a potential measured in thresholds: one threshold per channel, and the kernel's is 1
            current = (current / self.threshold).to(current.dtype)
        return lif(
            current,
            potential,
            membrane_decay=self.membrane_decay,
            options=self._binary_options,
            backend=self.backend,
        )

    def step(self, current: Tensor, potential: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return (spikes (B, C), potential (B, C), or None if memoryless) of one token."""
        spikes, potential = self(current.unsqueeze(1), potential)
        return spikes.squeeze(1), potential

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.to_dict().items())


class _ForeignNeuron(nn.Module):
    """What both adapters share: the module inside, and the proof that it does not look ahead."""

    def __init__(self, neuron: nn.Module):
        super().__init__()
        self.neuron = neuron

    @staticmethod
    def op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, Any]) -> dict[str, int | str]:
        """What it carries from token to token, for dispatch-mode counters; what it computes they see for themselves."""
        spikes, state = output
        memories = [part for part in tree_leaves(state) if isinstance(part, Tensor) and part.dim() == 2]
        touched = len(memories) * spikes.numel()
        return {
            "kind": "neuron",
            "state_elements": len(memories) * spikes.shape[-1],
            "state_reads": touched,
            "state_writes": touched,
        }

    def check_causal(self, channels: int, tokens: int = 4) -> None:
        """Raise ValueError if a neuron's spike depends on a later token: a language model would read its own answer."""
        generator = torch.Generator().manual_seed(0)
        example = next(self.parameters(), torch.zeros(()))
        current = 2 * torch.randn(1, tokens, channels, generator=generator).to(example)
        changed = current.clone()
        changed[:, -1] += 10
        with torch.no_grad():
            before, after = self(current)[0], self(changed)[0]
        if not torch.equal(before[:, :-1], after[:, :-1]):
            raise ValueError(
                f"{type(self.neuron).__name__} lets a token see later tokens, which a language model must not; use a "
                f"causal one"
            )


class SpikingJellyNeuron(_ForeignNeuron):
    """Any SpikingJelly multi-step neuron in the place of our LIF:
    `SpikingJellyNeuron(ParametricLIFNode(step_mode="m"))`.

    The state is the neuron's own memories (membrane potential and the like), or, for the parallel spiking neurons
    (PSN and its kin), which have no recurrent form, the currents so far. A PSN mixes exactly T time steps, later ones
    too: its weight is masked to the past, and texts longer than its T are refused.

    Raises:
        ValueError: the neuron is not in multi-step mode.
    """

    def __init__(self, neuron: nn.Module):
        super().__init__(neuron)
        if getattr(neuron, "step_mode", "m") != "m":
            raise ValueError(
                f"{type(neuron).__name__} has step_mode={neuron.step_mode!r}; a sequence needs step_mode='m'"
            )
        self.is_parallel = not hasattr(neuron, "v")
        weight = getattr(neuron, "weight", None)
        if self.is_parallel and weight is not None and weight.dim() == 2 and not hasattr(neuron, "lambda_"):
            nn.utils.parametrize.register_parametrization(neuron, "weight", _LowerTriangular())

    def forward(self, current: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return (spikes (B, T, C), state)."""
        return self._parallel(current, state) if self.is_parallel else self._recurrent(current, state)

    def _recurrent(self, current: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
        self.neuron.reset()
        for name, memory in (state or {}).items():
            setattr(self.neuron, name, memory)
        spikes = self.neuron(current.transpose(0, 1)).transpose(0, 1)
        # v_seq and the like are records of the past, of length T; the memories are what the next step needs
        state = {
            name: value
            for name, value in self.neuron.named_memories()
            if isinstance(value, Tensor) and not name.endswith("_seq")
        }
        self.neuron.reset()
        return spikes, state

    def _parallel(self, current: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        T = current.shape[1]
        whole = current if past is None else torch.cat([past, current], dim=1)
        longest = getattr(self.neuron, "T", None)
        if longest is not None and whole.shape[1] > longest:
            raise ValueError(
                f"{type(self.neuron).__name__} was made for T={longest} tokens, the text has {whole.shape[1]}; make "
                f"it with a larger T"
            )
        padding = 0 if longest is None else longest - whole.shape[1]
        drive = nn.functional.pad(whole, (0, 0, 0, padding)).transpose(0, 1).contiguous()
        spikes = self.neuron(drive).transpose(0, 1)[:, : whole.shape[1]]
        return spikes[:, -T:], whole


class _LowerTriangular(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tril()


class SnnTorchNeuron(_ForeignNeuron):
    """An snnTorch neuron in the place of our LIF: `SnnTorchNeuron(snn.Leaky(beta=0.5))`. Fires at >, not at >=.

    The state is the tuple that the neuron returns after its spikes (membrane, or synapse and membrane, ...).

    Raises:
        ValueError: the neuron keeps its own hidden state (`init_hidden=True`), which could not be carried.
    """

    def __init__(self, neuron: nn.Module):
        super().__init__(neuron)
        if getattr(neuron, "init_hidden", False):
            raise ValueError(
                f"{type(neuron).__name__} was made with init_hidden=True; make it with init_hidden=False, the model "
                f"carries the state"
            )

    def forward(self, current: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return (spikes (B, T, C), state)."""
        if state is None:
            first = self.neuron.reset_mem()
            state = first if isinstance(first, tuple) else (first,)
        spikes = []
        for drive in current.unbind(dim=1):
            spike, *state = self.neuron(drive, *state)
            spikes.append(spike)
        return torch.stack(spikes, dim=1), tuple(state)
