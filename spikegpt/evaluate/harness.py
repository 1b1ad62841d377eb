"""Our models in lm-eval: `spikegpt lm-eval --model spikegpt --model_args pretrained=RUN --tasks ...`.

EleutherAI's lm-evaluation-harness, which needs the extra `eval`. Three kinds of requests: log probabilities of
continuations (evaluate/scoring.py), of whole texts with carried state, however long they are, and continuations to be
written (generate/).

What stands before a text that has no context is `prefix`: <|endoftext|> where the tokenizer has it, else a newline.
"""

import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch

from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..config import SamplingConfig
from ..data.tokenizers import Tokenizer
from ..generate.stream import generate
from .scoring import BATCH, score_continuations

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import simple_parse_args_string
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise SpikegptError(
        f"lm_eval cannot be imported ({error}); install it with: pip install 'spikegpt[eval]'"
    ) from None

_log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"


@register_model("spikegpt")
class SpikeGPTHarness(TemplateLM):
    """A run, a checkpoint or an imported model.

    Args:
        pretrained: its folder.
        prefix: text of one token before texts without context; by default see the module.
        batch_size: contexts, continuations or prompts that are read at once; "auto" is 16.
        device: auto, cpu, cuda or cuda:N, or a torch.device.
        max_batch_size: lm_eval's; not needed.

    Raises:
        SpikegptError: no whole model there, a device that is not there, a batch_size that is no number, or a prefix
            that is not one token.
    """

    def __init__(
        self,
        pretrained: str,
        prefix: str | None = None,
        batch_size: int | str = BATCH,
        device: str | torch.device = "auto",
        max_batch_size: int | None = None,
    ):
        super().__init__()
        batch_size = BATCH if batch_size == "auto" else batch_size
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise SpikegptError(f"batch_size must be a whole number of at least 1, or auto, got {batch_size!r}")
        self.model, self.tokenizer = load_model(pretrained, device=device)
        self.batch_size, self._device = int(batch_size), self.model.device
        self.has_end, self.prefix, self._prefix_id = _prefix(self.tokenizer, prefix)
        _log.info("the model is on %s; texts without context are read after %r", self._device, self.prefix)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "SpikeGPTHarness":
        """See `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "SpikeGPTHarness":
        """Return the model of lm_eval's arguments: its own (`--model_args`) go before those of the command line."""
        others = {name: value for name, value in (additional_config or {}).items() if value is not None}
        # what lm_eval asks for where it was told nothing
        if others.get("device") == "cuda:0":
            others["device"] = "auto"
        return cls(**{**others, **arg_dict})

    @property
    def eot_token_id(self) -> int:
        return self._prefix_id

    @property
    def tokenizer_name(self) -> str:
        return f"{self.tokenizer.name}-{self.tokenizer.fingerprint[:12]}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes into its results."""
        return {
            "model_num_parameters": self.model.count_parameters(),
            "spiking": self.model.config.spiking,
            "tokenizer": self.tokenizer_name,
            "prefix": self.prefix,
            "context": "whole, carried state",
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        return self.tokenizer.encode(string.encode()).tolist()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log probability, whether it is the most likely) of each continuation, all of it, after its context.

        Spaces at the end of a context belong to the continuation, as everywhere in lm_eval. A context of nothing else
        is none, and `prefix` stands in its place.
        """
        pairs = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        end = len(context.rstrip())
        context, continuation = context[:end], context[end:] + continuation
        before, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        # where a token lies across the boundary, the continuation is read by itself: as a whole, and nothing twice
        goes_on = whole[: len(before)] == before
        return before or [self._prefix_id], whole[len(before) :] if goes_on else self.tok_encode(continuation)

    def _loglikelihood_tokens(self, requests: list[tuple], disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        # what has its context, or the beginning of one, in common comes together
        order = sorted(range(len(requests)), key=lambda place: requests[place][1])
        found: dict[int, tuple[float, bool]] = {}
        for part in _parts(order, 8 * self.batch_size, disable_tqdm):
            scores = score_continuations(self.model, [requests[place][1:] for place in part], self.batch_size)
            for place, score in zip(part, scores, strict=True):
                found[place] = score.log_probability, score.is_greedy
                self.cache_hook.add_partial("loglikelihood", requests[place][0], found[place])
        return [found[place] for place in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log probability of each text, all of it, after the prefix, with carried state: no windows."""
        ids = [self.tok_encode(*request.args) for request in requests]
        totals: dict[int, float] = {}
        # texts of like length together
        for part in _parts(sorted(range(len(ids)), key=lambda place: len(ids[place])), self.batch_size, disable_tqdm):
            scores = score_continuations(
                self.model, [([self._prefix_id], ids[place]) for place in part], self.batch_size
            )
            for place, score in zip(part, scores, strict=True):
                totals[place] = score.log_probability
                self.cache_hook.add_partial("loglikelihood_rolling", requests[place].args, score.log_probability)
        return [totals[place] for place in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each context: the most likely tokens, unless `do_sample`, up to a string of `until`.

        Sampling begins at the seed plus the place among `requests`: repeats of a request differ, and no answer depends
        on the size of a batch.

        Raises:
            SpikegptError: an option that we do not have.
        """
        settings = [self._sampling(request.args[1]) for request in requests]
        texts: dict[int, str] = {}
        for sampling in dict.fromkeys(settings):
            alike = [place for place, other in enumerate(settings) if other == sampling]
            for part in _parts(alike, self.batch_size, disable_tqdm):
                written = generate(
                    self.model,
                    self.tokenizer,
                    [self._prompt(requests[place].args[0]) for place in part],
                    sampling,
                    part,
                )
                for place, text in zip(part, written, strict=True):
                    texts[place] = text
                    # of several draws none is the answer
                    if sampling.temperature == 0:
                        self.cache_hook.add_partial("generate_until", requests[place].args, text)
        return [texts[place] for place in range(len(requests))]

    def _prompt(self, context: str) -> str:
        return context if self.tok_encode(context) else self.prefix

    def _sampling(self, options: dict[str, Any]) -> SamplingConfig:
        try:
            given = dict(normalize_gen_kwargs(options))
            max_tokens = given.pop("max_gen_toks")
            stops = [*filter(None, given.pop("until")), *([END_OF_TEXT] if self.has_end else [])]
            if not all(isinstance(stop, str) for stop in stops):
                raise TypeError(f"until is {options['until']!r}, want strings")
            # greedy unless told otherwise; and who samples, samples from all tokens as they are
            given["temperature"] = options.get("temperature", 1.0) if given.pop("do_sample") else 0.0
            return SamplingConfig(**{"top_p": 1.0, **given}, max_tokens=max_tokens, stop=tuple(stops))
        except TypeError as error:
            raise SpikegptError(
                f"generation_kwargs {options}: {error}; known: until, max_gen_toks, do_sample, and SamplingConfig's"
            ) from None


def _prefix(tokenizer: Tokenizer, text: str | None) -> tuple[bool, str, int]:
    """(whether the tokenizer has a token for the end of a text, what stands before a text without context, its id)."""
    has_end = tokenizer.name == "bpe" and len(tokenizer.encode(END_OF_TEXT.encode())) == 1
    text = text or (END_OF_TEXT if has_end else "\n")
    advice = "give a text that is one token: --model_args pretrained=RUN,prefix=TEXT"
    try:
        ids = tokenizer.encode(text.encode()).tolist()
    except SpikegptError as error:
        raise SpikegptError(f"the prefix {text!r} cannot be encoded ({error}); {advice}") from None
    if len(ids) != 1:
        raise SpikegptError(f"the prefix {text!r} has {len(ids)} tokens; {advice}")
    return has_end, text, ids[0]


def _parts(items: list, size: int, is_silent: bool) -> Iterator[list]:
    """Yield `items`, so many at a time, with a progress bar."""
    with tqdm(total=len(items), disable=is_silent) as bar:
        for start in range(0, len(items), size):
            part = items[start : start + size]
            yield part
            bar.update(len(part))


def run_lm_eval(arguments: list[str]) -> None:
    """Run lm_eval's own command line with `arguments`, knowing `--model spikegpt`."""
    from lm_eval.__main__ import cli_evaluate

    # its parser reads sys.argv and nothing else
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
