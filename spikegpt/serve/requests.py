"""Requests for text, checked once: OpenAI's completions, and what the page asks for.

Every field is known or refused: one that is misspelt, or that this server does not do, is never passed over in silence.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.errors import SpikegptError
from ..common.json_text import parse_json
from ..config import SamplingConfig, ServeConfig
from ..data.tokenizers import Tokenizer
from .refusals import Refused

# texts of one request, and what else has no sense in any number
MOST_TEXTS, MOST_STOPS, MOST_LOGPROBS = 128, 16, 20
# of the page: each token of the prompt is shown with its spikes
WATCHED_PROMPT = 512
# of SamplingConfig, by the names that they have in a request
_DRAWN = "temperature", "top_p", "top_k", "repetition_penalty"
# what OpenAI has and this server does not do -> values that ask for nothing
_UNDONE: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
_FIELDS = {"model", "prompt", "max_tokens", *_DRAWN, "n", "stop", "seed", "stream", "stream_options", "logprobs"}
_FIELDS |= {"echo", "best_of", "user", *_UNDONE}
_WATCH_FIELDS = {"model", "prompt", "max_tokens", *_DRAWN, "seed"}


@dataclass(frozen=True)
class Prompt:
    """What is continued: the text as it was given or as its ids read, and its ids (N,) int64."""

    text: str
    ids: np.ndarray


@dataclass(frozen=True)
class Request:
    """Texts to be written: `n` of each prompt, drawn as `sampling` says.

    The texts of a request are numbered, all of the first prompt first; text i is drawn with sampling.seed + i.
    `max_tokens` 0 asks for what is known of the prompts alone. `logprobs` is how many other tokens are shown beside
    each; None shows none. If it is `watched`, every token comes with the spikes that it fired.
    """

    prompts: tuple[Prompt, ...]
    sampling: SamplingConfig
    max_tokens: int
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    watched: bool = False


def read_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body spells; Refused if it is none."""
    try:
        values = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise Refused(400, f"the body is a JSON {type(values).__name__}; send an object: {{...}}")
    return values


def completion_request(values: dict[str, Any], tokenizer: Tokenizer, vocab_size: int, limits: ServeConfig) -> Request:
    """Return what the fields of a completion ask for, with OpenAI's defaults; Refused with 400 if a field is wrong."""
    _check_known(values, _FIELDS)
    for name, idle in _UNDONE.items():
        if values.get(name) not in idle:
            raise Refused(400, f"{name} is not supported; leave it out", name)
    n = _whole(values, "n", 1, 1, MOST_TEXTS)
    if values.get("best_of") not in (None, n):
        raise Refused(400, "best_of is not supported beyond n; leave it out", "best_of")
    echo, stream = _flag(values, "echo"), _flag(values, "stream")
    if not isinstance(values.get("user"), str | None):
        raise Refused(400, "user must be a string", "user")
    prompts = _prompts(values, tokenizer, vocab_size, limits.max_prompt)
    if n * len(prompts) > MOST_TEXTS:
        raise Refused(
            400, f"{len(prompts)} prompts with n = {n} are {n * len(prompts)} texts; at most {MOST_TEXTS}", "n"
        )
    max_tokens = _whole(values, "max_tokens", 16, 0, limits.most_tokens)
    if max_tokens == 0 and not echo:
        raise Refused(400, "max_tokens is 0, which asks for nothing without echo", "max_tokens")
    logprobs = None if values.get("logprobs") is None else _whole(values, "logprobs", 0, 0, MOST_LOGPROBS)
    return Request(
        prompts=prompts,
        sampling=_sampling(values, max_tokens, _stops(values)),
        max_tokens=max_tokens,
        n=n,
        logprobs=logprobs,
        echo=echo,
        stream=stream,
        include_usage=_includes_usage(values, stream),
    )


def watch_request(values: dict[str, Any], tokenizer: Tokenizer, vocab_size: int, limits: ServeConfig) -> Request:
    """Return what the page asks for: one text, with its spikes; Refused with 400 if a field is wrong."""
    _check_known(values, _WATCH_FIELDS)
    prompts = _prompts(values, tokenizer, vocab_size, min(limits.max_prompt, WATCHED_PROMPT))
    if len(prompts) != 1:
        raise Refused(400, "one prompt is watched at a time", "prompt")
    max_tokens = _whole(values, "max_tokens", 16, 1, limits.most_tokens)
    return Request(prompts, _sampling(values, max_tokens, ()), max_tokens, stream=True, watched=True)


def _check_known(values: dict[str, Any], known: set[str]) -> None:
    unknown = [name for name in values if name not in known]
    if unknown:
        raise Refused(400, f"unknown field {unknown[0]!r:.80}; known: {', '.join(sorted(known))}", unknown[0][:80])


def _whole(values: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = default if values.get(name) is None else values[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refused(400, f"{name} must be a whole number from {least} to {most:,}, got {_shown(value)}", name)
    return value


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name)
    if not isinstance(value, bool | None):
        raise Refused(400, f"{name} must be true or false, got {_shown(value)}", name)
    return bool(value)


def _shown(value: Any) -> str:
    # Python refuses to write very long numbers
    return "a very long number" if isinstance(value, int) and abs(value) >= 10**40 else f"{value!r:.60}"


def _sampling(values: dict[str, Any], max_tokens: int, stop: tuple[str, ...]) -> SamplingConfig:
    given = {"temperature": 1.0, "top_p": 1.0} | {name: values[name] for name in _DRAWN if values.get(name) is not None}
    seed = secrets.randbits(32) if values.get("seed") is None else values["seed"]
    try:
        # what asks for no token draws none
        return SamplingConfig(max_tokens=max(max_tokens, 1), seed=seed, stop=stop, **given)
    except ValueError as error:
        raise Refused(400, str(error), str(error).split()[0]) from None


def _stops(values: dict[str, Any]) -> tuple[str, ...]:
    stop = values.get("stop")
    found = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list) or len(found) > MOST_STOPS or not all(isinstance(one, str) and one for one in found):
        raise Refused(400, f"stop must be a string, or up to {MOST_STOPS} of them, none empty", "stop")
    return tuple(found)


def _includes_usage(values: dict[str, Any], stream: bool) -> bool:
    options = values.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise Refused(400, 'stream_options may be {"include_usage": true}, with stream', "stream_options")
    return _flag(options, "include_usage")


def _prompts(values: dict[str, Any], tokenizer: Tokenizer, vocab_size: int, most: int) -> tuple[Prompt, ...]:
    given = values.get("prompt")
    if given is None:
        raise Refused(400, "prompt is missing; give a string, a list of strings, or token ids", "prompt")
    is_one = isinstance(given, str) or (
        isinstance(given, list) and bool(given) and not isinstance(given[0], str | list)
    )
    parts = [given] if is_one else given
    if not isinstance(parts, list) or not 0 < len(parts) <= MOST_TEXTS:
        raise Refused(400, f"prompt must be a string, token ids, or up to {MOST_TEXTS} of either in a list", "prompt")
    return tuple(_prompt(part, tokenizer, vocab_size, most) for part in parts)


def _prompt(given: Any, tokenizer: Tokenizer, vocab_size: int, most: int) -> Prompt:
    if isinstance(given, str):
        text, ids = given, _encoded(given, tokenizer)
    else:
        is_token: Callable[[Any], bool] = lambda one: isinstance(one, int) and not isinstance(one, bool)  # noqa: E731
        if not isinstance(given, list) or not all(is_token(one) and 0 <= one < vocab_size for one in given):
            raise Refused(400, f"prompt must be text, or token ids from 0 to {vocab_size - 1:,}", "prompt")
        ids = np.asarray(given, np.int64)
        nothing = [int(one) for one in ids if one >= tokenizer.vocab_size or not tokenizer.has_token[one]]
        if nothing:
            raise Refused(400, f"prompt holds {nothing[0]}, for which the tokenizer has no token", "prompt")
        text = tokenizer.decode(ids).decode("utf-8", "replace")
    if not len(ids):
        raise Refused(400, "prompt is empty; the model needs at least one token to continue, a newline say", "prompt")
    if len(ids) > most:
        raise Refused(400, f"prompt has {len(ids):,} tokens; at most {most:,}", "prompt", "context_length_exceeded")
    if ids.max() >= vocab_size:
        raise Refused(400, f"prompt holds token {ids.max()}, the model knows {vocab_size}", "prompt")
    return Prompt(text, ids)


def _encoded(text: str, tokenizer: Tokenizer) -> np.ndarray:
    try:
        return tokenizer.encode(text).astype(np.int64)
    except SpikegptError as error:
        raise Refused(400, f"prompt: {error}", "prompt") from None
