"""The tokenizer that a JSON file describes, of whatever kind it is."""

from pathlib import Path
from typing import Any

from ...common.errors import SpikegptError
from .bpe import BPETokenizer
from .byte import ByteTokenizer
from .char import CharTokenizer
from .contract import FORMAT, Tokenizer, check_values, read_values
from .world import WorldTokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer in a file: one that `save` wrote, any of the Hugging Face `tokenizers` library, or RWKV
    World's vocabulary.

    Raises:
        SpikegptError: missing, or not a tokenizer.
    """
    return tokenizer_of(read_values(path), str(path))


def tokenizer_of(values: Any, source: str) -> Tokenizer:
    """Return the tokenizer that `values`, the content of a JSON file, describe; `source` stands in the errors.

    Raises:
        SpikegptError: not a tokenizer.
    """
    check_values(values, source)
    if "model" in values:
        return BPETokenizer(values, source)
    found = values.get("format")
    if type(found) is not int or found < 1:
        raise SpikegptError(f"{source} has format {found!r}, want {FORMAT}; fetch or write the tokenizer anew")
    if found > FORMAT:
        raise SpikegptError(f"{source} has format {found}, this spikegpt reads {FORMAT}; install a newer spikegpt")
    if values["tokenizer"] == "byte":
        return ByteTokenizer()
    if values["tokenizer"] == "char":
        characters = values.get("characters")
        if not isinstance(characters, str):
            raise SpikegptError(f"{source} has no 'characters' that are a string; fetch or write the tokenizer anew")
        try:
            return CharTokenizer(characters)
        except SpikegptError as error:
            raise SpikegptError(f"{source}: {error}") from None
    if values["tokenizer"] == "world":
        return WorldTokenizer.from_json(values, source)
    raise SpikegptError(
        f"{source} holds a tokenizer {values['tokenizer']!r}, known are byte, char and world; install a newer spikegpt"
    )
