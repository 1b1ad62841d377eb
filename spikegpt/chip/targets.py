"""The machines whose arithmetic is simulated: widths, rounding, and what a core holds.

A target says how numbers are kept; how a model is put into such numbers: program.py, where it lies: placement.py.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..common.errors import SpikegptError
from ..config.values import Range

# how a number loses its last places: to the nearest, halves upward; toward zero, as sign and magnitude are shifted
ROUNDINGS = ("nearest", "zero")
WEIGHT_BITS = Range(2, 8)
# below, a reciprocal has too few digits; above, the sum of squares of a norm leaves 64 bits
STATE_BITS = Range(12, 24)
TABLE_BITS = Range(4, 10)
HEADROOM_BITS = Range(0, 8)


@dataclass(frozen=True, kw_only=True)
class Cores:
    """What a chip has: cores, and what each of them holds. Source: where the figures are from, and how sure."""

    cores: int
    neurons: int
    synapses: int
    memory_bytes: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """How a machine keeps numbers.

    weight_bits: of a weight's mantissa, with its sign; the exponent is shared by what `exponent_of` says.
    state_bits: of the stream, currents, membranes and both sums of the WKV, with their sign; they saturate.
    factor_bits: places behind the point of decays and token mixes.
    threshold_places: last binary places that a threshold cannot have.
    table_bits: 2^table_bits entries has each table, of exp, sigmoid, 1/x and 1/sqrt(x); between them it is a line.
    """

    name: str
    weight_bits: int = 8
    exponent_of: Literal["output", "matrix"] = "output"
    state_bits: int = 24
    factor_bits: int = 16
    threshold_places: int = 0
    rounding: Literal["nearest", "zero"] = "nearest"
    table_bits: int = 8
    cores: Cores | None = None

    def __post_init__(self):
        for name, allowed in (("weight_bits", WEIGHT_BITS), ("state_bits", STATE_BITS), ("table_bits", TABLE_BITS)):
            allowed.check(name, getattr(self, name))

    @property
    def limit(self) -> int:
        """The largest number of a state."""
        return 2 ** (self.state_bits - 1) - 1


# source of the arithmetic: Lava (github.com/lava-nc/lava), proc/lif/models.py and proc/dense: weights of 8 bits with
# one exponent, decays of 12 bits, (x * (4096 - d)) >> 12 toward zero, membranes of 24 bits, thresholds << 6. There a
# current wraps around; here it saturates and is counted
LOIHI2 = Target(
    name="loihi2",
    exponent_of="matrix",
    factor_bits=12,
    threshold_places=6,
    rounding="zero",
    cores=Cores(
        cores=128,
        neurons=8192,
        synapses=937_500,
        memory_bytes=31_000_000 // 128,
        source=(
            "Intel's brief of Loihi 2: 128 cores, a million neurons, 120 million synapses, 31 MB; per core by "
            "division. Some boards have 120 usable cores"
        ),
    ),
)
TARGETS = {target.name: target for target in (LOIHI2, Target(name="generic"))}


def target_of(name: str, **widths: int | None) -> Target:
    """Return the target of this name, with other widths where some are given.

    Raises:
        SpikegptError: there is no such target.
        ValueError: a width is out of its range.
    """
    if name not in TARGETS:
        raise SpikegptError(f"there is no target {name!r}; known: {', '.join(TARGETS)}")
    given: dict[str, Any] = {field: value for field, value in widths.items() if value is not None}
    return replace(TARGETS[name], **given)
