"""What a text's memory costs and what it buys, measured at one length: a point of the figures that show it."""

from dataclasses import asdict, dataclass, field
from typing import Any

CONSTANT = "constant state"


@dataclass(frozen=True, kw_only=True)
class ContextPoint:
    """One model by one policy at one length."""

    model: str
    mixer: str
    spiking: str
    policy: str
    """what is kept of a text; "constant state" where nothing grows"""
    budget: float | None
    """the number of the policy: tokens, bits, or a share"""
    context: int
    bytes_by_part: dict[str, float]
    """what one text carries after `context` tokens"""
    operations: dict[str, int]
    """of the last token: products that are multiply-accumulates and accumulates, and elementwise ones by class"""
    bits_per_byte: float | None
    """of the second half of the windows, of recall of the values asked for; None where the text is shorter than one"""
    predicted_tokens: int
    texts: int
    tokens_per_s: float
    recalled: float | None = None
    """share of the values asked for that are the most probable ones, letter by letter; of recall alone"""
    notes: tuple[str, ...] = field(default=())

    @property
    def bytes_per_text(self) -> float:
        return sum(self.bytes_by_part.values())

    @property
    def operations_per_token(self) -> int:
        return sum(self.operations.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `bits` are those per byte."""
        totals = {"bytes_per_text": self.bytes_per_text, "operations_per_token": self.operations_per_token}
        return {**asdict(self), **totals, "bits": self.bits_per_byte}
