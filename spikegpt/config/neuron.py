"""The configuration of a neuron. Equations: `kernels/`."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from .values import Config, Range, check


@dataclass(frozen=True, kw_only=True)
class NeuronConfig(Config):
    """One leaky integrate-and-fire neuron; the defaults are the published SpikeGPT's.

    With `levels` above 1 or `signed` it is an integer neuron: it may fire several unit spikes within one token, and
    negative ones (ON/OFF pairs). Its alphabet is -levels..levels or 0..levels, its surrogate straight-through
    ("rectangular", slope 1), and no gradient flows through its reset.
    """

    ranges: ClassVar[dict[str, Range]] = {"levels": Range(1, 127)}

    membrane_decay: float = 0.5
    """fraction of the potential kept per step = 1 - 1/tau"""
    threshold: float = 1.0
    """a neuron fires when its potential is >= this"""
    reset: Literal["zero", "subtract", "none"] = "zero"
    """after a spike: back to reset_potential, minus the threshold, or as it was"""
    reset_potential: float = 0.0
    """resting potential; must be 0 for the other resets"""
    decay_input: bool = True
    """multiply the input current by 1 - membrane_decay"""
    detach_reset: bool = False
    """keep gradients from flowing through the reset"""
    surrogate: Literal["atan", "sigmoid", "fast_sigmoid", "rectangular"] = "atan"
    """derivative used for the step in the backward pass"""
    slope: float = 2.0
    """steepness of the surrogate (alpha of atan)"""
    learnable_decay: bool = False
    """one trained membrane_decay per channel, starting at the one above"""
    learnable_threshold: bool = False
    """one trained threshold per channel, starting at the one above"""
    levels: int = 1
    """most unit spikes per token"""
    signed: bool = False
    """negative spikes too: ON/OFF pairs, where a spike adds or subtracts"""

    def __post_init__(self):
        super().__post_init__()
        lowest, highest = (
            ("above 0", "below 1")
            if self.learnable_decay
            else ("at least 0", "below 1" if self.decay_input else "at most 1")
        )
        decay = self.membrane_decay
        fits = 0 < decay < 1 if self.learnable_decay else 0 <= decay < 1 or (decay == 1 and not self.decay_input)
        check(
            fits, f"membrane_decay must be {lowest} and {highest}, got {decay}; tau = 2 steps is membrane_decay = 0.5"
        )
        check(
            self.threshold > self.reset_potential,
            f"threshold ({self.threshold}) must exceed reset_potential ({self.reset_potential})",
        )
        check(
            self.reset == "zero" or self.reset_potential == 0,
            f"reset {self.reset!r} rests at 0: reset_potential must be 0",
        )
        check(self.slope > 0, f"slope must be positive, got {self.slope}")
        if self.is_integer:
            kind = f"an integer neuron (levels={self.levels}, signed={self.signed})"
            check(
                self.reset_potential == 0, f"{kind} rests at 0: reset_potential must be 0, got {self.reset_potential}"
            )
            straight = self.surrogate == "rectangular" and self.slope == 1 and self.detach_reset
            check(
                straight,
                f"{kind} is trained straight through: it needs surrogate='rectangular', slope=1, detach_reset=True",
            )
        check(
            not self.learnable_threshold or self.reset_potential == 0, "a learnable threshold needs reset_potential 0"
        )

    @property
    def is_memoryless(self) -> bool:
        """Whether no potential is kept from token to token."""
        return self.membrane_decay == 0 and not self.learnable_decay

    @property
    def is_integer(self) -> bool:
        return self.levels > 1 or self.signed

    @property
    def alphabet(self) -> tuple[int, int]:
        """Lowest and highest spike: (0, 1) is binary, (-1, 1) ternary."""
        return (-self.levels if self.signed else 0), self.levels

    @property
    def tau(self) -> float:
        """Membrane time constant in steps."""
        return 1 / (1 - self.membrane_decay) if self.membrane_decay < 1 else float("inf")

    @classmethod
    def from_tau(cls, tau: float, **options) -> Self:
        """Return the neuron whose time constant is `tau` steps: membrane_decay = 1 - 1/tau."""
        check(tau >= 1, f"tau must be at least 1 step, got {tau}")
        return cls(membrane_decay=1 - 1 / tau, **options)


# the neuron of the spike-driven block: ON/OFF, up to eight spikes a token, memoryless;
# what measured best in benchmarks/recipe.py
INPUT_NEURON = NeuronConfig(
    membrane_decay=0.0,
    reset="subtract",
    detach_reset=True,
    surrogate="rectangular",
    slope=1.0,
    learnable_threshold=True,
    levels=8,
    signed=True,
)
