"""From text to tokens: sources and corpora, tokenizers, token files, labelled examples."""

from .prepare import prepare
from .tokens.token_file import TokenData

__all__ = ["TokenData", "prepare"]
