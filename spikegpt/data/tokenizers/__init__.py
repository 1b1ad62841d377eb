"""Bytes, characters, BPE, RWKV World: text to ids and back, and how long texts are encoded by several processes."""

from .bpe import BPETokenizer
from .byte import ByteTokenizer
from .char import CharTokenizer
from .contract import Tokenizer
from .stored import load_tokenizer
from .world import WorldTokenizer

__all__ = ["BPETokenizer", "ByteTokenizer", "CharTokenizer", "Tokenizer", "WorldTokenizer", "load_tokenizer"]
