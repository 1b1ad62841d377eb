"""How a server shares a model among its clients: what it computes at once, what waits, and what it refuses."""

from dataclasses import dataclass
from typing import ClassVar

from .values import Config, Range


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Config):
    """How a server shares a model among its clients."""

    ranges: ClassVar[dict[str, Range]] = {
        "texts": Range(1, 1024),
        "queue": Range(1, 10**6),
        "max_prompt": Range(1, 10**6),
        "most_tokens": Range(1, 10**6),
        "answer_s": Range(0.1, 86400.0),
        "queue_s": Range(0.1, 86400.0),
        "client_s": Range(0.1, 3600.0),
    }

    texts: int = 32
    """texts of a model that are computed in one batch; others wait"""
    queue: int = 256
    """texts of a model that may wait; beyond it a request is refused with 429"""
    max_prompt: int = 8192
    """tokens that a prompt may have"""
    most_tokens: int = 4096
    """tokens that a request may ask for per text"""
    answer_s: float = 300.0
    """seconds after which a text that is still being written is broken off"""
    queue_s: float = 60.0
    """seconds after which a text that still waits is given up"""
    client_s: float = 15.0
    """seconds that a client may take for the head of its request, for the body, and to read what it was sent"""
