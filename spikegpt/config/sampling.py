"""How the next token is chosen from the model's predictions."""

from dataclasses import dataclass

from .values import Config, check


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How the next token is chosen."""

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
        check(self.max_tokens >= 1, f"max_tokens must be at least 1, got {self.max_tokens}")
        check(self.temperature >= 0, f"temperature must not be negative, got {self.temperature}")
        check(self.top_k >= 0, f"top_k must not be negative, got {self.top_k}")
        check(0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}")
        check(self.repetition_penalty > 0, f"repetition_penalty must be positive, got {self.repetition_penalty}")
        check(all(self.stop), "stop strings must not be empty")
