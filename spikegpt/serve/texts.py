"""Texts that are being written for a request: each draws its tokens by itself, as `generate` does, and tells of them.

How a token is drawn, and where a text ends: generate/. When its turn is: scheduler.py.
"""

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..data.tokenizers import Tokenizer
from ..generate.sample import Chooser
from ..generate.stream import PREFILL_CHUNK, Row
from ..model.network import SpikeGPT
from ..model.state import State
from .operations import Multiplications
from .refusals import Refused
from .requests import Prompt, Request

# positions whose logits are computed at once where those of a whole prompt are asked for: bounds memory
SCORED_TOGETHER = 64


class Score(NamedTuple):
    """A token, its log probability before anything narrowed the choice (None for the first of a text), and the likely
    ones beside it."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()

    @property
    def bits(self) -> float | None:
        """How surprising the token was."""
        return None if self.logprob is None else -self.logprob / math.log(2)


class Placed(NamedTuple):
    """A token of an answer, and at which of its characters it begins."""

    score: Score
    offset: int


class Piece(NamedTuple):
    """Text that became final, of a numbered text, with the tokens that begin in it; how the text ended, if it did;
    and how many tokens were drawn for it."""

    choice: int
    text: str
    tokens: tuple[Placed, ...]
    finish: str | None
    drawn: int


class PromptRead(NamedTuple):
    """A prompt was read: its place among the prompts, and its tokens."""

    prompt: int
    scores: tuple[Score, ...]


class Spikes(NamedTuple):
    """What tokens (N,) of a watched text fired: layer of neurons -> (N, channels); and macs (N,), see operations.py."""

    tokens: tuple[Score, ...]
    spikes: dict[str, Tensor]
    macs: Tensor
    is_prompt: bool


Event = Piece | PromptRead | Spikes | Refused


def score(token: int, logits: Tensor, top: int) -> Score:
    """Return how likely `token` was by logits (vocab_size,), and the `top` likeliest."""
    logprobs = logits.float().log_softmax(dim=-1)
    found = logprobs.topk(min(top, len(logprobs)))
    return Score(token, logprobs[token].item(), tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True)))


class Reading:
    """A prompt that is read piece by piece: afterwards logits (1, vocab_size) of the next token, and the state.

    Args:
        scored: how many likely tokens are noted beside each of the prompt's; None scores none.
        keeps_spikes: what every token fires is kept.
    """

    def __init__(self, model: SpikeGPT, prompt: Prompt, scored: int | None, keeps_spikes: bool):
        self._model, self._ids, self._read = model, torch.from_numpy(prompt.ids).to(model.device), 0
        self._scored, self._keeps_spikes = scored, keeps_spikes
        self.logits, self.state = torch.empty(0), cast(State, None)
        self.scores = [] if scored is None else [Score(int(prompt.ids[0]), None)]
        self.spikes: dict[str, list[Tensor]] = {}
        self.macs: list[Tensor] = []

    @property
    def is_done(self) -> bool:
        return self._read == len(self._ids)

    def read_on(self) -> bool:
        """Read the next piece, as long as `generate` reads at once, for the same numbers to come out; return whether it
        was the last."""
        ids = self._ids[self._read : self._read + PREFILL_CHUNK]
        counting = Multiplications(self._model) if self._keeps_spikes else None
        with counting or contextlib.nullcontext():
            x, self.state, spikes = self._model.hidden(ids[None], self.state)
            if counting is not None:
                # the neurons of a head fire too
                self._model.read_out(x, spikes)
        if counting is not None:
            self.macs.append(counting.macs)
            for name, fired in spikes.items():
                self.spikes.setdefault(name, []).append(fired[0])
        self.logits = self._model.read_out(x[:, -1:], {})[:, -1]
        if self._scored is not None:
            predicted = self._ids[self._read + 1 : self._read + len(ids) + 1]
            for start in range(0, len(predicted), SCORED_TOGETHER):
                part = predicted[start : start + SCORED_TOGETHER]
                logits = self._model.read_out(x[:, start : start + len(part)], {})[0].cpu()
                self.scores += [score(int(token), one, self._scored) for token, one in zip(part, logits, strict=True)]
        self._read += len(ids)
        return self.is_done


class Text:
    """One text of a request, from its prompt to its end."""

    def __init__(self, index: int, job: "Job", tokenizer: Tokenizer, has_token: Tensor):
        request = job.request
        self.index, self.job, self.prompt = index, job, index // request.n
        ids = torch.from_numpy(request.prompts[self.prompt].ids)
        self._row = Row(index, tokenizer, request.sampling.stop)
        self._chooser = Chooser(request.sampling, request.sampling.seed + index, has_token, ids)
        self._released, self._written, self._held = 0, 0, list[Placed]()
        self._top = request.logprobs if request.logprobs is not None else 0
        self._is_scored = request.logprobs is not None or request.watched
        self.token, self.last, self.is_done = 0, Score(0, None), False

    def draw(self, logits: Tensor) -> Piece:
        """Draw the next token, `token`, from logits (vocab_size,) and return what became final of the text."""
        self.token = self._chooser.choose(logits)
        self._written += 1
        if self._is_scored:
            self.last = score(self.token, logits, self._top)
            self._held.append(Placed(self.last, self._released + len(self._row.held)))
        pieces = list(self._row.push(self.token))
        finish = "stop" if self._row.is_done else None
        if finish is None and self._written == self.job.request.max_tokens:
            pieces += self._row.finish()
            finish = "length"
        text = "".join(piece.text for piece in pieces)
        self._released, self.is_done = self._released + len(text), finish is not None
        # the tokens of a text that is cut off before them go with it
        is_whole = finish == "length"
        final = tuple(one for one in self._held if is_whole or one.offset < self._released)
        self._held = self._held[len(final) :]
        return Piece(self.index, text, final, finish, drawn=1)

    def end_at_once(self) -> Piece:
        """Return the end of a text that asked for no token."""
        self.is_done = True
        return Piece(self.index, "", (), "length", drawn=0)

    @property
    def written(self) -> int:
        """How many tokens were drawn."""
        return self._written


@dataclass(eq=False)
class Job:
    """A request on its way: its texts, what each prompt's reading found, and what its client has not yet been told.

    It is made in the event loop that is told of it, whose the outbox is; all else is the scheduler's thread's once it
    was submitted.
    """

    request: Request
    texts: list[Text] = field(default_factory=list)
    outbox: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    readings: dict[int, Reading] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    came: float = field(default_factory=time.monotonic)
    is_gone: bool = False
    """the client went away, or the request was given up"""

    @classmethod
    def of(cls, request: Request, tokenizer: Tokenizer, has_token: Tensor) -> "Job":
        """Return a request that was not yet submitted."""
        job = cls(request)
        count = request.n * len(request.prompts)
        job.texts = [Text(index, job, tokenizer, has_token) for index in range(count)]
        return job

    def reading_of(self, text: Text, model: SpikeGPT) -> Reading:
        """Return the reading of the text's prompt, begun now if it is the first that asks."""
        if text.prompt not in self.readings:
            request = self.request
            is_scored = request.watched or (request.echo and request.logprobs is not None)
            scored = (request.logprobs or 0) if is_scored else None
            self.readings[text.prompt] = Reading(model, request.prompts[text.prompt], scored, request.watched)
        return self.readings[text.prompt]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be told."""
        return self.is_gone or all(text.is_done for text in self.texts)

    def is_last_of_prompt(self, text: Text) -> bool:
        """Whether no later text continues the same prompt."""
        return (text.index + 1) % self.request.n == 0
