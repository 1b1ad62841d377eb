"""Our LIF as a module, and the proof that it emits its declared alphabet.

Every neuron here maps a current (B, T, C) and a state to spikes (B, T, C) and the state after the last token, so that
a text may be read at once, in chunks, or token by token. The equations are in `kernels/lif/reference.py` and
`kernels/integer_lif/reference.py`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import NeuronConfig
from ..kernels import commitment_error, integer_lif, lif
from ..kernels.integer_lif.options import IntegerLIFOptions
from ..kernels.lif.options import LIFOptions
from ..kernels.operators import product_dtype

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


class NeuronRows(NamedTuple):
    """A layer of neurons as numbers, each row (channels,).

    charged = decay * potential + gain * current + pull; unit spikes = whole thresholds in it, at most `levels`, none of
    them negative unless `signed`; then the potential is `rest` where a spike was, if it `resets_to_rest`, else lower by
    `taken` for each spike. `remembers`: whether the potential is carried to the next token.
    """

    decay: Tensor
    gain: Tensor
    pull: Tensor
    threshold: Tensor
    taken: Tensor
    levels: int
    signed: bool
    resets_to_rest: bool
    rest: float
    remembers: bool


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons, one per channel.

    `forward` is the scan form, over (B, T, C); `step` takes one token, (B, C). The state is the membrane potential
    (B, C), None at the start of a text, and always None in a memoryless neuron (membrane_decay 0). With
    `learnable_decay` the parameter `decay_logit` (C,) is trained and membrane_decay = sigmoid(decay_logit); with
    `learnable_threshold`, `log_threshold` (C,) and threshold = exp(log_threshold).
    """

    def __init__(self, channels: int, config: NeuronConfig | None = None, backend: str = "auto"):
        _check_channels(channels)
        if not isinstance(config, NeuronConfig | None):
            raise ValueError(
                f"LIF: config is a {type(config).__name__}, want a NeuronConfig; NeuronConfig.from_dict makes one"
            )
        super().__init__()
        self.config, self.backend, self.channels = config or NeuronConfig(), backend, channels
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
            self.decay_logit = nn.Parameter(torch.empty(channels))
        if self.config.learnable_threshold:
            self.log_threshold = nn.Parameter(torch.empty(channels))

        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Let what is learned begin at the configuration's decay and threshold."""
        if self.config.learnable_decay:
            decay = self.config.membrane_decay
            self.decay_logit.fill_(math.log(decay / (1 - decay)))
        if self.config.learnable_threshold:
            self.log_threshold.fill_(math.log(self.config.threshold))

    @property
    def alphabet(self) -> tuple[int, int]:
        """Lowest and highest spike."""
        return self.config.alphabet

    @property
    def is_memoryless(self) -> bool:
        return self.config.is_memoryless

    @property
    def fusible(self) -> IntegerLIFOptions | None:
        """What kind of neurons a kernel may compute together with their currents; None if a call is more than that.

        It is more where neurons remember or are not of integers, where spikes are annealed in, and where somebody looks
        on by a hook or has put something else in the place of `forward`.
        """
        is_plain = type(self) is LIF and self.config.is_integer and self.is_memoryless and self.backend == "auto"
        is_annealed = self.training and self.spike_share < 1
        if not is_plain or is_annealed or "forward" in vars(self) or _is_hooked(self):
            return None
        return self._integer_options

    @property
    def threshold(self) -> float | Tensor:
        return _exp_of_few(self.log_threshold) if self.config.learnable_threshold else self.config.threshold

    @property
    def membrane_decay(self) -> float | Tensor:
        return torch.sigmoid(self.decay_logit) if self.config.learnable_decay else self.config.membrane_decay

    @property
    def spike_worth(self) -> float | Tensor:
        """The current that one unit spike stands for: (1 + 1/levels) thresholds, as whole ones are counted, downwards.

        With it, and the best threshold for it, the squared error of spikes for Gaussian currents is within 1 % of the
        least that a worth of any size allows (levels 1, 2, 4, 8: 0.19, 0.10, 0.044, 0.017 of the variance).
        """
        return self.threshold * (1 + 1 / self.config.levels)

    def forward(self, current: Tensor, potential: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return (spikes (B, T, C), potential (B, C), or None if memoryless).

        Raises:
            ValueError: the current has another number of channels, or is not (B, T, C).
        """
        if current.shape[-1] != self.channels:
            raise ValueError(f"LIF: the current has {current.shape[-1]} channels, the neurons are {self.channels}")
        if self.training and self.spike_share == 0 and self.is_memoryless:
            return self._without_spikes(current), None
        spikes, potential = (
            self._integer(current, potential) if self.config.is_integer else self._binary(current, potential)
        )
        self.verify(spikes)
        if self.training and self.spike_share < 1:
            spiking = torch.rand(spikes.shape, device=spikes.device) < self.spike_share
            spikes = torch.where(spiking, spikes, self._without_spikes(current))
        return spikes, None if self.is_memoryless else potential

    def _without_spikes(self, current: Tensor) -> Tensor:
        """The real numbers of unit spikes that a current is worth (B, T, C), in the precision of spikes."""
        return (current / self.spike_worth).to(product_dtype(current) if self.config.is_integer else current.dtype)

    def verify(self, spikes: Tensor) -> None:
        """Raise ValueError if spikes that stand for these neurons' are not of their alphabet, where that is asked for.

        See `verified_spikes`.
        """
        if _is_verified and not spikes.is_meta:
            check_alphabet(spikes.detach(), self.alphabet, f"LIF({self.extra_repr()})")

    @property
    def can_commit(self) -> bool:
        """Whether what a current makes these neurons emit depends on it alone, in whole spikes."""
        return self.config.is_integer and self.is_memoryless

    def commitment_error(self, current: Tensor) -> Tensor:
        """Return how far currents (B, T, C) lie from what their spikes stand for (scalar, `kernels.commitment_error`).

        Of neurons that `can_commit`.
        """
        return commitment_error(current, self.threshold, self._integer_options, self.backend)

    def _integer(self, current: Tensor, potential: Tensor | None) -> tuple[Tensor, Tensor]:
        return integer_lif(
            current,
            potential,
            membrane_decay=self.membrane_decay,
            threshold=self.threshold,
            options=self._integer_options,
            backend=self.backend,
            # whole numbers stay exact
            dtype=product_dtype(current),
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

    def rows(self, dtype: torch.dtype = torch.float32) -> NeuronRows:
        """Return what a token step needs to know of these neurons, in the units of their own potential."""
        config, channels = self.config, self.channels
        decay = torch.as_tensor(self.membrane_decay, dtype=dtype).detach().expand(channels)
        threshold = torch.as_tensor(self.threshold, dtype=dtype).detach().expand(channels)
        gain = 1 - decay if config.decay_input else torch.ones_like(decay)
        if config.learnable_threshold and not config.is_integer:
            # such a neuron measures its potential in thresholds, see `_binary`
            gain, threshold = gain / threshold, torch.ones_like(threshold)
        pull = (1 - decay) * config.reset_potential
        taken = threshold if config.reset == "subtract" else torch.zeros_like(threshold)
        options = config.levels, config.signed, config.reset == "zero", config.reset_potential, not self.is_memoryless
        return NeuronRows(decay, gain, pull, threshold, taken, *options)

    def step(self, current: Tensor, potential: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return (spikes (B, C), potential (B, C), or None if memoryless) of one token."""
        spikes, potential = self(current.unsqueeze(1), potential)
        return spikes.squeeze(1), potential

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.to_dict().items())


def _exp_of_few(numbers: Tensor) -> Tensor:
    """Return torch.exp, computed by one thread: MKL gives even a few numbers to all, thirty times slower."""
    threads = torch.get_num_threads()
    if threads == 1 or not numbers.is_cpu or torch.compiler.is_compiling():
        return torch.exp(numbers)
    torch.set_num_threads(1)
    try:
        return torch.exp(numbers)
    finally:
        torch.set_num_threads(threads)


def _is_hooked(module: nn.Module) -> bool:
    kinds = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    return any(kinds) or torch.nn.modules.module._has_any_global_hook()


def _check_channels(channels: object) -> None:
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        found = f"LIF: channels must be a whole number of at least 1, got {channels!r:.80}"
        raise ValueError(f"{found}; a neuron factory is given a site: LIF(site.channels, site.neuron)")
