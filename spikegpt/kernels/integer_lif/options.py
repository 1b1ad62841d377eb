"""What kind of integer neuron: one value, checked when it is made."""

from dataclasses import dataclass

from ..checks import RESETS, check_known

MOST_LEVELS = 127  # a signed byte holds every count, and so does each floating-point dtype, exactly


@dataclass(frozen=True, kw_only=True)
class IntegerLIFOptions:
    """The constants of `reference.integer_lif_step`; its threshold is one per channel and may learn.

    Raises:
        ValueError: an option does not fit; the message names what was found and wanted.
    """

    levels: int = 1  # most spikes per token, 1 to 127
    signed: bool = False  # let a negative potential fire negative spikes (ON/OFF pairs)
    # takes `threshold` off the potential for each spike; "zero" puts it at 0, "none" leaves it
    reset: str = "subtract"
    decay_input: bool = True  # multiply the current by 1 - membrane_decay

    def __post_init__(self) -> None:
        check_known("integer_lif", "reset", self.reset, RESETS)
        if not isinstance(self.levels, int) or not 1 <= self.levels <= MOST_LEVELS:
            raise ValueError(f"integer_lif: levels must be a whole number from 1 to {MOST_LEVELS}, got {self.levels!r}")
