"""Text from a model, token by token: the engine, sampling, streaming."""

from .engine import Engine
from .stream import SamplingConfig, generate, stream

__all__ = ["Engine", "SamplingConfig", "generate", "stream"]
