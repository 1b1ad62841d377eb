"""What kind of leaky integrate-and-fire neuron: one value, checked when it is made."""

from dataclasses import dataclass

from ..checks import RESETS, check_known
from ..surrogates import SURROGATES


@dataclass(frozen=True, kw_only=True)
class LIFOptions:
    """The constants of `reference.lif_step`.

    Raises:
        ValueError: an option does not fit; the message names what was found and wanted.
    """

    threshold: float = 1.0  # a neuron fires when its potential is >= this
    # puts the potential at `reset_potential` after a spike; "subtract" takes `threshold` off it, "none" leaves it
    reset: str = "zero"
    reset_potential: float = 0.0  # where "zero" resets to, and what the potential leaks towards
    decay_input: bool = True  # multiply the current by 1 - membrane_decay, as SpikeGPT and SpikingJelly's default do
    detach_reset: bool = False  # keep the gradient from flowing through the reset
    surrogate: str = "atan"  # derivative used for the step, see `surrogates.surrogate_derivative`
    slope: float = 2.0  # steepness of the surrogate

    def __post_init__(self) -> None:
        check_known("lif", "reset", self.reset, RESETS)
        check_known("lif", "surrogate", self.surrogate, SURROGATES)
        if not self.slope > 0:
            raise ValueError(f"lif: slope must be positive, got {self.slope}")
        if not self.threshold > self.reset_potential:
            raise ValueError(
                f"lif: threshold ({self.threshold}) must lie above reset_potential ({self.reset_potential}), "
                "or every neuron fires at rest"
            )
        if self.reset != "zero" and self.reset_potential != 0.0:
            raise ValueError(
                f"lif: reset_potential {self.reset_potential} needs reset='zero'; {self.reset!r} rests at 0"
            )

    @property
    def after_spike(self) -> tuple[float, float]:
        """(keep, offset): a spike turns the potential into keep * potential + offset."""
        changes = {"zero": (0.0, self.reset_potential), "subtract": (1.0, -self.threshold), "none": (1.0, 0.0)}
        return changes[self.reset]
