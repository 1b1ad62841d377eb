"""How the next token is chosen from the model's predictions."""

import math
from dataclasses import dataclass
from typing import ClassVar

from .values import SEEDS, Config, Range, check


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How the next token is chosen."""

    ranges: ClassVar[dict[str, Range]] = {
        "max_tokens": Range(1, 10**9),
        "temperature": Range(0.0, math.inf),
        "top_k": Range(0, 2**31),
        "repetition_penalty": Range(0.001, 1000.0, "it divides and multiplies what the model predicts; 1 is none"),
        "seed": SEEDS,
    }

    max_tokens: int = 200
    temperature: float = 0.8
    """0 takes the most likely token always"""
    top_k: int = 0
    """choose among the k most likely; 0 is no limit"""
    top_p: float = 0.95
    """choose among the most likely that together have this probability"""
    repetition_penalty: float = 1.0
    """above 1 makes tokens that were seen less likely"""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """end before this string; may be given several times"""

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}")
        check(all(self.stop), "stop strings must not be empty")
