"""Small vocabularies in the form of RWKV World's, and the plain reference of how a text is taken apart by one."""

import random
from pathlib import Path

from spikegpt.data.tokenizers import WorldTokenizer

TEXT = "Très \u0100b \u732b\U0001f40d the neuron, the neurons and 'the neural' net.\n\n    x = 12;\n" * 3


def vocabulary(seed: int = 0, n_longer: int = 100) -> dict[bytes, int]:
    """Every single byte, whose ids are theirs plus one, and longer pieces of a text, some of half a character."""
    source, draw = TEXT.encode(), random.Random(seed)
    found = {bytes([byte]): byte + 1 for byte in range(256)}
    found |= {token: 257 + n for n, token in enumerate([b"\n\n", *(b" " * n for n in range(2, 64))])}
    while len(found) < 256 + 63 + n_longer:
        start = draw.randrange(len(source) - 12)
        found.setdefault(source[start : start + draw.randint(2, 12)], len(found) + 1)
    return found


def write_vocabulary(path: Path, tokens: dict[bytes, int]) -> Path:
    path.write_text("".join(line(id, token) for token, id in tokens.items()), encoding="utf-8")
    return path


def line(id: int, token: bytes) -> str:
    try:
        literal = repr(token.decode())
    except UnicodeDecodeError:
        literal = repr(token)
    return f"{id} {literal} {len(token)}\n"


def by_trying_lengths(tokens: dict[bytes, int], text: bytes) -> list[int]:
    """The ids of `text`: everywhere the longest piece that is a token."""
    ids, start = [], 0
    while start < len(text):
        size = next(size for size in range(len(text) - start, 0, -1) if text[start : start + size] in tokens)
        ids.append(tokens[text[start : start + size]])
        start += size
    return ids


def world(**options) -> WorldTokenizer:
    return WorldTokenizer(vocabulary(**options))
