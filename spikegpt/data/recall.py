"""A synthetic text that nothing local predicts: keys with their values, then the same keys again in another order.

qk=vw;ra=bo;xe=ub;xe=ub;qk=vw;ra=bo;
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# how the text is named among the corpora
RECALL = "recall"
RECALL_BYTES, LEAST_RECALL_BYTES = 4_000_000, 1000
MOST_LETTERS = 4
ALPHABET = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
EQUALS, SEMICOLON = b"=;"


class Episode(NamedTuple):
    """Statements key=value; as bytes: each pair is `told` once, and `asked` again."""

    told: np.ndarray
    """(pairs, size) uint8"""
    asked: np.ndarray
    """(questions, size) uint8"""


def statement_size(letters: int) -> int:
    """Return the bytes of a statement whose key and value have so many letters."""
    return 2 * letters + 2


def value_of(letters: int) -> slice:
    """Return where in a statement its value stands."""
    return slice(letters + 1, 2 * letters + 1)


def make_episode(pairs: int, questions: int, letters: int, rng: np.random.Generator) -> Episode:
    """Return `pairs` different keys with values, and so many questions: all pairs in a new order, over and over.

    Raises:
        ValueError: a number is out of its range, or there are not so many keys.
    """
    if letters not in range(1, MOST_LETTERS + 1):
        raise ValueError(f"letters must be a whole number from 1 to {MOST_LETTERS}, got {letters}")
    keys = len(ALPHABET) ** letters
    if not 1 <= pairs <= keys:
        raise ValueError(f"pairs must be between 1 and {keys:,}, the keys of {letters} letters, got {pairs}")
    told = np.empty((pairs, statement_size(letters)), dtype=np.uint8)
    told[:, :letters] = _spelt(rng.choice(keys, pairs, replace=False), letters)
    told[:, letters] = EQUALS
    told[:, value_of(letters)] = _spelt(rng.integers(0, keys, pairs), letters)
    told[:, -1] = SEMICOLON
    rounds = -(-questions // pairs)
    order = np.concatenate([rng.permutation(pairs) for _ in range(rounds)]) if rounds else np.empty(0, dtype=np.int64)
    return Episode(told, told[order[:questions]])


def recall_text(pairs: int, letters: int, seed: int, size: int) -> Iterator[bytes]:
    """Yield lines, an episode each, that come to `size` bytes: 1 to `pairs` pairs, small numbers as often as large.

    Raises:
        ValueError: as `make_episode`.
    """
    rng, written = np.random.default_rng(seed), 0
    while written < size:
        some = int(np.exp(rng.uniform(0, np.log(pairs + 1))))
        line = b"".join(part.tobytes() for part in make_episode(some, some, letters, rng)) + b"\n"
        written += len(line)
        yield line


def _spelt(numbers: np.ndarray, letters: int) -> np.ndarray:
    """Numbers (N,) as letters (N, letters)."""
    places = len(ALPHABET) ** np.arange(letters - 1, -1, -1)
    return ALPHABET[numbers[:, None] // places % len(ALPHABET)]
