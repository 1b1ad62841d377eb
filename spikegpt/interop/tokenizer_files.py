"""Our tokenizers as files of Hugging Face's `tokenizers` library, and back; needs no `transformers`.

The padding token is none of the vocabulary, and its id is the first that has no row in the model: no text can hold it,
and it stays padding whether a mask says so or not. Names that begin with NO_TOKEN have an id and are no token of ours.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import SpikegptError
from ..common.files import write_atomically
from ..data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, WorldTokenizer
from ..data.tokenizers.bpe import NO_TOKEN, byte_letters
from ..data.tokenizers.contract import read_values
from ..data.tokenizers.stored import tokenizer_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

END = "<|endoftext|>"
# spelled out in a text, each would be read as that token, as with every special token: so nobody writes them by chance
PADDING = f"{NO_TOKEN}padding|>"
UNKNOWN = f"{NO_TOKEN}unknown|>"

# takes a text apart into its characters
SPLIT = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}

# a level of a regular expression each, of which the library bears some thousand
LONGEST_IN_PATTERN = 400


def library_tokenizer(tokenizer: Tokenizer, rows: int | None = None) -> "LibraryTokenizer":
    """Return a tokenizer of the library with the same ids and no padding token.

    Args:
        rows: of the model, which may have more than there are tokens; default as many. What is added here comes behind
            them: to an alphabet UNKNOWN, for characters that are not in it, and whatever the user adds.

    Raises:
        SpikegptError: it is of a kind that the library has no equal of.
    """
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    rows = max(rows or 0, tokenizer.vocab_size)
    if isinstance(tokenizer, BPETokenizer):
        # ours adds no token to a text, and takes none away
        values = {**tokenizer.to_json(), "post_processor": None, "truncation": None, "padding": None}
        return _library(values, tokenizer.vocabulary, rows)
    if isinstance(tokenizer, ByteTokenizer):
        # the vocabulary of single letters that stand for bytes, and no pair of them
        ids = {letter: byte for byte, letter in enumerate(byte_letters())}
        library = LibraryTokenizer(models.BPE(ids, []))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = decoders.ByteLevel()
        return _library(json.loads(library.to_str()), ids, rows)
    if isinstance(tokenizer, CharTokenizer):
        ids = {character: id for id, character in enumerate(tokenizer.characters)}
        model = {"type": "WordLevel", "vocab": ids | {UNKNOWN: rows}, "unk_token": UNKNOWN}
        values = {"version": "1.0", "added_tokens": [], "pre_tokenizer": SPLIT, "decoder": {"type": "Fuse"}}
        return _library({**values, "model": model}, ids, rows)
    if isinstance(tokenizer, WorldTokenizer):
        return world_library(tokenizer, rows)
    raise SpikegptError(
        f"{type(tokenizer).__name__} has no equal in Hugging Face's library; train with --tokenizer byte, char or bpe"
    )


def world_library(tokenizer: WorldTokenizer, rows: int) -> "LibraryTokenizer":
    """Return the tokenizer of the library that takes the longest token everywhere, by a regular expression.

    Raises:
        SpikegptError: tokens are too long for one.
    """
    from tokenizers import AddedToken, decoders, pre_tokenizers

    if max(map(len, tokenizer.vocabulary)) > LONGEST_IN_PATTERN:
        raise SpikegptError(
            f"the vocabulary has tokens of more than {LONGEST_IN_PATTERN} bytes, which Hugging Face's library cannot "
            "look for; export it with --layout pth"
        )
    letters = byte_letters()
    ids = {"".join(letters[byte] for byte in token): id for token, id in tokenizer.vocabulary.items()}
    pattern = {"Regex": longest_first(tokenizer.vocabulary)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    values = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [json.loads(as_letters.__getstate__()), split]},
        "decoder": json.loads(decoders.ByteLevel().__getstate__()),
    }
    ids.setdefault(END, 0)
    library = _library({**values, "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN}}, ids, rows)
    if ids[END] == 0:
        library.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return library


def longest_first(tokens: Iterable[bytes]) -> str:
    """Return the regular expression of the longest of `tokens` that a text, in letters, goes on with: their trie."""
    trie: dict[str, Any] = {}
    letters = byte_letters()
    for token in sorted(tokens):
        node = trie
        for byte in token:
            node = node.setdefault(letters[byte], {})
        # here one ends
        node[""] = {}

    def after(node: dict[str, Any]) -> str:
        ways = [re.escape(letter) + after(more) for letter, more in node.items() if letter]
        return f"(?:{'|'.join(ways)}){'?' if '' in node else ''}" if ways else ""

    return after(trie)


def _library(values: dict[str, Any], ids: dict[str, int], rows: int) -> "LibraryTokenizer":
    from tokenizers import Tokenizer as LibraryTokenizer

    return LibraryTokenizer.from_str(json.dumps(_fill(values, ids, rows)))


def _fill(values: dict[str, Any], ids: dict[str, int], rows: int) -> dict[str, Any]:
    """Return `values`, a file of the library, with a name in its vocabulary for each of the ids below `rows`.

    The library gives an added token the first free id, whatever the file says: all of `ids` are held in place so.
    """
    names = {id: name for name, id in ids.items() if id < rows}
    if len(names) == rows:
        return values
    vocabulary = values["model"]["vocab"]
    # a list, of Unigram, has pairs of a name and a score, and the place is the id
    known = set(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary))
    new = {names.get(id, f"{NO_TOKEN}{id}|>"): id for id in range(rows) if id not in known}
    if isinstance(vocabulary, dict):
        vocabulary = vocabulary | new
    else:
        least = min((score for _, score in vocabulary), default=0.0)
        vocabulary = vocabulary + [[name, least] for name in new]
    return {**values, "model": {**values["model"], "vocab": vocabulary}}


def tokenizer_options(library: "LibraryTokenizer", pads: bool) -> dict[str, Any]:
    """Return what `PreTrainedTokenizerFast` must be told beside `library`: its special tokens, and how it pads."""
    options: dict[str, Any] = {"padding_side": "left", "clean_up_tokenization_spaces": False}
    if library.token_to_id(END) is not None:
        options |= {"eos_token": END, "bos_token": END}
    if library.token_to_id(UNKNOWN) is not None:
        options |= {"unk_token": UNKNOWN}
    return options | ({"pad_token": PADDING} if pads else {})


def rows_without_token(tokenizer: Tokenizer, rows: int) -> list[int]:
    """Return the ids below `rows`, those of a model, that are no token; released models have such rows."""
    return [id for id in range(rows) if id >= tokenizer.vocab_size or not tokenizer.has_token[id]]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, pads: bool, rows: int | None = None) -> dict[str, int | None]:
    """Write into `folder` what AutoTokenizer reads, and return the ids of its special tokens for config.json.

    Args:
        pads: whether there is a padding token; a model that looks rows up for padding too has none for ours.
        rows: see `library_tokenizer`.
    """
    library = library_tokenizer(tokenizer, rows)
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
    whole = tokenizer_of(values, str(path))
    if isinstance(whole, BPETokenizer) and (world := _world(values)) is not None:
        return world
    if not isinstance(whole, BPETokenizer) or not {PADDING, UNKNOWN} & whole.vocabulary.keys():
        return whole
    # one that was saved by PreTrainedTokenizerFast; perhaps with more tokens, whose ids follow that of the padding
    ids = {name: id for name, id in whole.vocabulary.items() if name != PADDING}
    tokens = [name for name in sorted(ids, key=ids.__getitem__) if not name.startswith(NO_TOKEN)]
    if values.get("pre_tokenizer") == SPLIT and len(tokens) == len("".join(tokens)) == whole.vocab_size:
        return CharTokenizer("".join(tokens))
    added = [token for token in values.get("added_tokens") or [] if not token["content"].startswith(NO_TOKEN)]
    return BPETokenizer(_fill({**values, "added_tokens": added}, ids, whole.vocab_size), str(path))


def _world(values: dict[str, Any]) -> WorldTokenizer | None:
    """The tokenizer that `world_library` made a file of, unless tokens were added to it."""
    if values["model"].get("type") != "WordLevel" or (values.get("pre_tokenizer") or {}).get("type") != "Sequence":
        return None
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    names = {name: id for name, id in values["model"]["vocab"].items() if id and not name.startswith(NO_TOKEN)}
    added = {token["content"] for token in values.get("added_tokens") or []} - {END, PADDING}
    if added or not all(byte_of.keys() >= set(name) for name in names):
        return None
    tokens = {bytes(byte_of[letter] for letter in name): id for name, id in names.items()}
    split = values["pre_tokenizer"]["pretokenizers"][-1]
    return WorldTokenizer(tokens) if split.get("pattern") == {"Regex": longest_first(tokens)} else None
