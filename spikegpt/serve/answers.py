"""Answers in the form of OpenAI's completions: pieces of texts, with their log probabilities, or whole texts."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from ..data.tokenizers import Tokenizer
from .requests import Request
from .texts import Piece, Placed, PromptRead, Score


class Completion:
    """What becomes of one request, told event by event: `chunk` for a stream, `whole` at the end."""

    def __init__(self, model: str, request: Request, tokenizer: Tokenizer):
        self._request, self._tokenizer = request, tokenizer
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        self._head["model"] = model
        self._prompts: dict[int, tuple[Score, ...]] = {}
        self._begun: set[int] = set()
        self._pieces: dict[int, list[dict[str, Any]]] = {n: [] for n in range(request.n * len(request.prompts))}
        self._left, self._drawn = len(self._pieces), 0

    @property
    def is_done(self) -> bool:
        return not self._left

    def note_prompt(self, read: PromptRead) -> None:
        """Keep what is known of a prompt for the texts that echo it."""
        self._prompts[read.prompt] = read.scores

    def chunk(self, piece: Piece) -> dict[str, Any] | None:
        """Return what is sent of a piece; None if there is nothing to say yet."""
        self._drawn += piece.drawn
        choice = self._choice(piece)
        if piece.finish is not None:
            self._left -= 1
        return {**self._head, "choices": [choice]} if choice["text"] or piece.finish or choice["logprobs"] else None

    def keep(self, piece: Piece) -> None:
        """Keep a piece for the whole answer."""
        chunk = self.chunk(piece)
        if chunk is not None:
            self._pieces[piece.choice] += chunk["choices"]

    def whole(self) -> dict[str, Any]:
        """Return the answer made of all pieces that were kept."""
        return {**self._head, "choices": [_joined(pieces) for pieces in self._pieces.values()], "usage": self.usage()}

    def last_chunk(self) -> dict[str, Any]:
        """Return what a stream says at its end to who asked for the usage."""
        return {**self._head, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        read = sum(len(prompt.ids) for prompt in self._request.prompts)
        return {"prompt_tokens": read, "completion_tokens": self._drawn, "total_tokens": read + self._drawn}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        text, placed = piece.text, list(piece.tokens)
        if self._request.echo:
            prompt = piece.choice // self._request.n
            start = len(self._request.prompts[prompt].text)
            placed = [one._replace(offset=start + one.offset) for one in placed]
            if piece.choice not in self._begun:
                self._begun.add(piece.choice)
                text = self._request.prompts[prompt].text + text
                placed = self._placed_prompt(self._prompts.get(prompt, ())) + placed
        logprobs = self._logprobs(placed) if self._request.logprobs is not None and placed else None
        return {"index": piece.choice, "text": text, "logprobs": logprobs, "finish_reason": piece.finish}

    def _placed_prompt(self, scores: Sequence[Score]) -> list[Placed]:
        stream, offset, placed = self._tokenizer.stream(), 0, []
        for score in scores:
            placed.append(Placed(score, offset))
            offset += len(stream.push(score.token))
        return placed

    def _logprobs(self, placed: Sequence[Placed]) -> dict[str, Any]:
        scores = [one.score for one in placed]
        return {
            "tokens": [label(self._tokenizer, score.token) for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [self._top(score) for score in scores] if self._request.logprobs else None,
            "text_offset": [one.offset for one in placed],
        }

    def _top(self, score: Score) -> dict[str, float] | None:
        if score.logprob is None:
            return None
        return {label(self._tokenizer, token): logprob for token, logprob in score.top}


def label(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as text; one that is no whole characters as OpenAI writes it: bytes:\\xe2\\x82."""
    if token >= tokenizer.vocab_size or not tokenizer.has_token[token]:
        return f"<{token}>"
    content = tokenizer.decode([token])
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _joined(choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
    logprobs: dict[str, Any] | None = None
    if found:
        logprobs = {
            name: None if found[0][name] is None else [value for part in found for value in part[name]]
            for name in found[0]
        }
    text = "".join(choice["text"] for choice in choices)
    return {**choices[-1], "text": text, "logprobs": logprobs}
