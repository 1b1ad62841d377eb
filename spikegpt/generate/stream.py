"""Text from a model, token by token, in constant memory: several prompts at once, streaming.

How one token is drawn: sample.py. Each prompt has its own random generator, so what it yields does not depend on its
neighbours in the batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.errors import SpikegptError
from ..config import SamplingConfig
from ..data.tokenizers import Tokenizer
from ..model.network import SpikeGPT, evaluating
from ..model.state import State, join_states
from .engine import Engine
from .sample import Chooser

PREFILL_CHUNK = 1024


class Piece(NamedTuple):
    """Text that became final: which prompt it continues, and the text."""

    prompt: int
    text: str


def generate(
    model: SpikeGPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    draws: Sequence[int] | None = None,
) -> list[str]:
    """Return the continuation of each prompt, without the prompt; see `stream`."""
    _check_arguments(model, tokenizer, prompts, sampling, draws)
    texts = [""] * len(prompts)
    for piece in stream(model, tokenizer, prompts, sampling, draws):
        texts[piece.prompt] += piece.text
    return texts


@torch.inference_mode()
def stream(
    model: SpikeGPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    draws: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Yield the continuations of all prompts piece by piece, as soon as a piece can no longer change.

    Pieces hold whole characters only, and nothing that may turn out to be the beginning of a stop string. Ids for which
    the tokenizer has no token are never chosen.

    Args:
        draws: a number per prompt: equal prompts are continued alike where it is equal, and differently where it is
            not. It is added to the seed; by default it is the place among `prompts`.

    Raises:
        SpikegptError: no prompt, an empty one, or one that the tokenizer cannot encode; or an argument is of another
            kind.
    """
    _check_arguments(model, tokenizer, prompts, sampling, draws)
    sampling = sampling or SamplingConfig()
    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) == 0:
            raise SpikegptError(
                f"the prompt {prompt!r} is empty; "
                "the model needs at least one token to continue, a newline for instance"
            )
        if ids.max() >= model.config.vocab_size:
            raise SpikegptError(
                f"the prompt {prompt!r} holds token {ids.max()}, the model knows {model.config.vocab_size}: "
                "this is not its tokenizer"
            )
    draws = range(len(prompts)) if draws is None else draws
    read = [torch.from_numpy(found.astype("int64")) for found in encoded]
    may_be = has_token(tokenizer, model.config.vocab_size)
    choosers = [
        Chooser(sampling, sampling.seed + draw, may_be, prompt) for draw, prompt in zip(draws, read, strict=True)
    ]
    rows = [Row(index, tokenizer, sampling.stop) for index in range(len(prompts))]
    with evaluating(model):
        # each prompt alone: padding would put foreign tokens into a recurrent state
        logits, states = zip(*(_read_prompt(model, prompt.to(model.device)) for prompt in read), strict=True)
        logits = torch.cat(logits)
        engine = Engine(model, top_k=logits_wanted(sampling, may_be))
        engine.start(join_states(states))
        left = sampling.max_tokens
        while left:
            written, logits = engine.write(logits, choosers, left)
            left -= written.shape[1]
            for tokens in written.T.tolist():
                for row, token in zip(rows, tokens, strict=True):
                    yield from row.push(token)
                if all(row.is_done for row in rows):
                    return
        for row in rows:
            yield from row.finish()


def logits_wanted(sampling: SamplingConfig, may_be: Tensor) -> int | None:
    """Return how many of the largest logits a draw can depend on; None for all of them."""
    wanted = 1 if sampling.temperature == 0 else sampling.top_k
    if not wanted or sampling.repetition_penalty != 1.0:
        return None
    # those of ids without a token may lie before them
    return wanted + int((~may_be).sum())


def _check_arguments(model: Any, tokenizer: Any, prompts: Any, sampling: Any, draws: Any) -> None:
    for name, value, kind in (("model", model, SpikeGPT), ("tokenizer", tokenizer, Tokenizer)):
        if not isinstance(value, kind):
            raise SpikegptError(f"{name} is a {type(value).__name__}, want a {kind.__name__}")
    if not isinstance(sampling, SamplingConfig | None):
        raise SpikegptError(f"sampling is a {type(sampling).__name__}, want a SamplingConfig, or None")
    if isinstance(prompts, str):
        raise SpikegptError(f"prompts is the string {prompts!r}; give a list of strings, [{prompts!r}]")
    # texts come back in the order of the prompts, so a set or a generator will not do
    if not isinstance(prompts, list | tuple):
        raise SpikegptError(f"prompts is a {type(prompts).__name__}; give a list of strings")
    if not prompts:
        raise SpikegptError("no prompt given; give at least one non-empty string")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise SpikegptError(f"a prompt is {prompt!r:.80}; give strings")
    if draws is not None and (len(draws) != len(prompts) or not all(isinstance(draw, int) for draw in draws)):
        raise SpikegptError(f"draws is {draws!r:.80}; give a whole number for each of the {len(prompts)} prompt(s)")


def _encode(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    try:
        return tokenizer.encode(prompt.encode())
    except UnicodeEncodeError as error:
        raise SpikegptError(
            f"the prompt {prompt!r} holds {prompt[error.start]!r}, half a character; give text in UTF-8"
        ) from None


def has_token(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """(vocab_size,) bool: released models have a few rows more than their tokenizer has tokens."""
    has_token = torch.zeros(vocab_size, dtype=torch.bool)
    known = torch.from_numpy(tokenizer.has_token)[:vocab_size]
    has_token[: len(known)] = known
    return has_token


def _read_prompt(model: SpikeGPT, ids: Tensor) -> tuple[Tensor, State]:
    """Logits (1, vocab_size) after the prompt and the state; long prompts in chunks, so that memory stays bounded."""
    state = None
    for start in range(0, len(ids), PREFILL_CHUNK):
        output = model(ids[None, start : start + PREFILL_CHUNK], state, last_only=True)
        state = output.state
    return output.logits[:, -1], output.state


class Row:
    """The text that continues one prompt: its decoder, and the strings that it ends before."""

    def __init__(self, index: int, tokenizer: Tokenizer, stop: tuple[str, ...]):
        self.index, self.stop = index, stop
        self.decoder, self.held, self.is_done = tokenizer.stream(), "", False

    def push(self, token: int) -> Iterator[Piece]:
        if not self.is_done:
            yield from self._release(self.decoder.push(token), is_last=False)

    def finish(self) -> Iterator[Piece]:
        if not self.is_done:
            yield from self._release(self.decoder.flush(), is_last=True)
            self.is_done = True

    def _release(self, text: str, is_last: bool) -> Iterator[Piece]:
        self.held += text
        cuts = [self.held.index(stop) for stop in self.stop if stop in self.held]
        if cuts:
            ready, self.held, self.is_done = self.held[: min(cuts)], "", True
        else:
            kept = 0 if is_last else _possible_start(self.held, self.stop)
            ready, self.held = self.held[: len(self.held) - kept], self.held[len(self.held) - kept :]
        if ready:
            yield Piece(self.index, ready)


def _possible_start(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins one of `stops`."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    return next(
        (n for n in range(min(longest, len(text)), 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0
    )
