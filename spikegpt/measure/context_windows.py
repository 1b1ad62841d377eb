"""What `context` reads: windows of a text, or of keys and values that only memory predicts; and how well it is read."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..common.errors import SpikegptError
from ..data.recall import make_episode, statement_size, value_of
from ..data.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Texts of one length; what counts is how well their second halves are predicted."""

    ids: np.ndarray
    """(texts, length)"""
    asked: np.ndarray
    """(texts, length) bool: the tokens that count"""
    predicted_bytes: int
    """of those"""
    answer: int | None = None
    """letters of an answer, all of which stand together; None of a plain text"""

    @property
    def first(self) -> int:
        """Where the second half begins."""
        return self.ids.shape[1] // 2


class Score:
    """How well windows (B, L) are predicted: `add` logits as they come, then read the sums."""

    def __init__(self, ids: Tensor, asked: np.ndarray):
        self._ids, self._asked = ids, torch.from_numpy(asked).to(ids.device)
        self._losses = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
        self._is_right = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)

    def add(self, logits: Tensor, place: int) -> None:
        """Take the logits (B, T, V) of tokens `place` to `place` + T; those that are not asked for count nothing."""
        end = place + logits.shape[1]
        targets = self._ids[:, place:end]
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        self._losses[:, place:end] = losses.double().view(targets.shape)
        self._is_right[:, place:end] = logits.argmax(-1) == targets

    def nats(self) -> float:
        """Return the cross-entropy in sum."""
        return self._losses[self._asked].sum().item()

    def answers(self, letters: int) -> tuple[int, int]:
        """Return (how many answers of so many letters are right in every letter, how many there are)."""
        is_right = self._is_right[self._asked].view(-1, letters).all(1)
        return int(is_right.sum()), len(is_right)


def text_windows(tokens: np.ndarray, length: int, texts: int, tokenizer: Tokenizer) -> Windows:
    """Return up to `texts` windows, evenly over `tokens` (N,); a text that is too short is repeated in one window."""
    count = min(texts, len(tokens) // length)
    starts = [place * (len(tokens) - length) // max(count - 1, 1) for place in range(count)] or [0]
    ids = np.stack([np.resize(tokens[start:], length) for start in starts])
    asked = np.broadcast_to(np.arange(length) >= length // 2, ids.shape).copy()
    if not count:
        asked[:] = False
    size = sum(len(tokenizer.decode(window[length // 2 :])) for window in ids) if count else 0
    return Windows(ids=ids, asked=asked, predicted_bytes=size)


def recall_windows(length: int, texts: int, letters: int, seed: int, tokenizer: Tokenizer) -> Windows:
    """Return `texts` windows: as many pairs as fit into the first half, questions in the second.

    Raises:
        SpikegptError: a half is shorter than a statement, or a token is not a letter.
        ValueError: there are no keys of so many letters.
    """
    size, first = statement_size(letters), length // 2
    pairs = first // size
    if not pairs:
        raise SpikegptError(
            f"a length of {length} has no room for a pair of {size} bytes in each half; give --lengths of "
            f"at least {2 * size}"
        )
    questions = (length - first) // size
    rng = np.random.default_rng([seed, length])
    lines = np.full((texts, length), ord("\n"), dtype=np.uint8)
    asked = np.zeros((texts, length), dtype=bool)
    told, end = slice(first - pairs * size, first), first + questions * size
    for line in lines:
        episode = make_episode(pairs, questions, letters, rng)
        line[told], line[first:end] = episode.told.ravel(), episode.asked.ravel()
    asked[:, first:end].reshape(texts, questions, size)[..., value_of(letters)] = True
    ids = [tokenizer.encode(line.tobytes()) for line in lines]
    if any(len(row) != length for row in ids):
        raise SpikegptError(
            f"recall asks for letters one by one, and the tokenizer {tokenizer.name} joins them; "
            "name runs with --tokenizer byte or char"
        )
    return Windows(ids=np.stack(ids), asked=asked, predicted_bytes=int(asked.sum()), answer=letters)


def bits_per_byte(nats: float, size: int) -> float | None:
    """Return bits per byte of `size` bytes; None of none."""
    return nats / math.log(2) / size if size else None
