"""Bytes, characters, BPE: text to ids and back, and how long texts are encoded by several processes."""

from .bpe import BPETokenizer
from .byte import ByteTokenizer
from .char import CharTokenizer
from .contract import Tokenizer
from .stored import load_tokenizer

__all__ = ["BPETokenizer", "ByteTokenizer", "CharTokenizer", "Tokenizer", "load_tokenizer"]
