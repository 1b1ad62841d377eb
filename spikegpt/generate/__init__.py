"""Text from a model, token by token: the engine, streaming."""

from .engine import Engine
from .stream import generate, stream

__all__ = ["Engine", "generate", "stream"]
