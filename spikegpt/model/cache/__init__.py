"""Policies of a key-value cache: what is kept of a text, in how many bits, and what that costs."""

from .policy import CachePolicy
from .reader import CachedReader
from .specs import parse_policy

__all__ = ["CachePolicy", "CachedReader", "parse_policy"]
