"""Text from a model, token by token: the engine, sampling, streaming."""

from ..config import SamplingConfig
from .engine import Engine
from .stream import generate, stream

__all__ = ["Engine", "SamplingConfig", "generate", "stream"]
