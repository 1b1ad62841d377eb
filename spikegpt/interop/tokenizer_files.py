"""Our tokenizers as files of Hugging Face's `tokenizers` library, and back; needs no `transformers`.

The padding token is none of the vocabulary, and its id is the first that has no row in the model: no text can hold it,
and it stays padding whether a mask says so or not.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import SpikegptError
from ..common.files import write_atomically
from ..data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from ..data.tokenizers.bpe import byte_letters
from ..data.tokenizers.contract import check_values, read_values
from ..data.tokenizers.stored import tokenizer_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

END = "<|endoftext|>"
# spelled out in a text, each would be read as that token, as with every special token: so nobody writes them by chance
PADDING = "<|spikegpt padding|>"
UNKNOWN = "<|spikegpt unknown|>"

# takes a text apart into its characters
SPLIT = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}


def library_tokenizer(tokenizer: Tokenizer) -> "LibraryTokenizer":
    """Return a tokenizer of the library with the same ids and no padding token.

    An alphabet has one token more here, UNKNOWN, for characters that are not in it.

    Raises:
        SpikegptError: it is of a kind that the library has no equal of.
    """
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    if isinstance(tokenizer, BPETokenizer):
        library = LibraryTokenizer.from_str(json.dumps(tokenizer.to_json()))
        # ours adds no token to a text, and takes none away
        library.post_processor = None
        library.no_truncation()
        library.no_padding()
        return library
    if isinstance(tokenizer, ByteTokenizer):
        # the vocabulary of single letters that stand for bytes, and no pair of them
        library = LibraryTokenizer(models.BPE({letter: byte for byte, letter in enumerate(byte_letters())}, []))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = decoders.ByteLevel()
        return library
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = {token: id for id, token in enumerate([*tokenizer.characters, UNKNOWN])}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN}
        values = {"version": "1.0", "added_tokens": [], "pre_tokenizer": SPLIT, "decoder": {"type": "Fuse"}}
        return LibraryTokenizer.from_str(json.dumps({**values, "model": model}))
    raise SpikegptError(
        f"{type(tokenizer).__name__} has no equal in Hugging Face's library; train with --tokenizer byte, char or bpe"
    )


def tokenizer_options(library: "LibraryTokenizer", pads: bool) -> dict[str, Any]:
    """Return what `PreTrainedTokenizerFast` must be told beside `library`: its special tokens, and how it pads."""
    options: dict[str, Any] = {"padding_side": "left", "clean_up_tokenization_spaces": False}
    if library.token_to_id(END) is not None:
        options |= {"eos_token": END, "bos_token": END}
    if library.token_to_id(UNKNOWN) is not None:
        options |= {"unk_token": UNKNOWN}
    return options | ({"pad_token": PADDING} if pads else {})


def write_tokenizer(tokenizer: Tokenizer, folder: Path, pads: bool) -> dict[str, int | None]:
    """Write into `folder` what AutoTokenizer reads, and return the ids of its special tokens for config.json.

    Args:
        pads: whether there is a padding token; a model that looks rows up for padding too has none for ours.
    """
    library = library_tokenizer(tokenizer)
    options = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer_options(library, pads)}
    write_atomically(folder / "tokenizer.json", library.to_str(pretty=True))
    write_atomically(folder / "tokenizer_config.json", json.dumps(options, indent=1))
    return {"bos_token_id": library.token_to_id(END), "eos_token_id": library.token_to_id(END)}


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a JSON file, as `load_tokenizer` does, but those of `write_tokenizer` as what they were.

    Raises:
        SpikegptError: missing, not JSON, or not a tokenizer.
    """
    values = read_values(path)
    check_values(values, str(path))
    if isinstance(added := values.get("added_tokens"), list):
        # one that was saved by PreTrainedTokenizerFast
        values["added_tokens"] = [token for token in added if PADDING not in str(token)]
    if values.get("pre_tokenizer") == SPLIT and UNKNOWN in (ids := values["model"]["vocab"]):
        return CharTokenizer("".join(token for token in sorted(ids, key=ids.get) if token != UNKNOWN))
    return tokenizer_of(values, str(path))
