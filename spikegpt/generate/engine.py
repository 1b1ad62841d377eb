"""Recurrent decoding: the whole network one token at a time, with carried state, event-driven where spikes are read.

On the CPU the token step is one compiled function (compiled/): it lists the inputs of every matrix product that are not
zero and reads only their rows of the weights. What fires rarely costs little; the dense twin runs through the same
function with long lists. On a GPU products of spikes are event-driven (event_products.py). Many texts at once, and what
neither of them can serve, go through the model's own forward pass. A token of the GPU is one CUDA graph (graphs.py).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..common.shards import is_sharded
from ..kernels.backends import is_installed
from ..model.interventions import is_intervened
from ..model.network import SpikeGPT
from ..model.state import State, texts_of
from .compiled import TOKEN_STEPS
from .compiled.rows import WEIGHTS, differing_neurons
from .event_products import EventDecoder
from .graphs import ForwardStep, capture_of
from .sample import Chooser, not_finite

if TYPE_CHECKING:
    from .compiled.decoder import RowDecoder

# texts times density (the share of weight rows that a token reads) above which one dense product over all texts is
# taken to be faster than gathering rows; benchmarks/decode.py --batch measures it on the CPU
GATHERED_TEXTS = 8.0

# weights in matrices below which waking a second thread for every token costs more than it saves
SHARED_WEIGHTS = 10_000_000


class Decoder(Protocol):
    """What reads rows: takes over a state, reads a token of each text, gives the state back."""

    def take(self, state: State) -> None: ...

    def step(self, tokens: Tensor) -> Tensor: ...

    def give(self) -> State: ...

    def spike_counts(self) -> dict[str, int]: ...

    def density(self) -> float: ...

    def sharings(self) -> list[str]: ...


class Engine:
    """Decodes texts with `model` token by token: `start` with a state, then `step` after `step`.

    Args:
        model: on the CPU its weights are copied, so later changes of the model are not seen.
        weights: how they are stored: float32 (or the model's own precision), bfloat16, or int8 with a scale per output.
            The state, the neurons and the sums are float32 always (float64 in a float64 model).
        top_k: as many logits, the largest, are wanted; of a vocabulary of 16,384 tokens and more, on a CPU, the others
            may be -inf, for then the head is read where eight bits of its weights cannot tell, and not elsewhere.
        threads: that share the work of a token on the CPU; None takes the fastest number up to torch's, which is tried
            on the first tokens, or one for one text of a small model.

    Raises:
        ValueError: unknown `weights`, or a model that cannot be decoded by rows while `weights` is not its own.
    """

    def __init__(self, model: SpikeGPT, weights: str = "float32", threads: int | None = None, top_k: int | None = None):
        if weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}; known: {', '.join(WEIGHTS)}")
        if not isinstance(model, SpikeGPT):
            raise ValueError(f"model is a {type(model).__name__}, want a SpikeGPT")
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 0):
            raise ValueError(f"threads must be a whole number of at least 1, or None, got {threads!r}")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k must be a whole number of at least 1, or None, got {top_k!r}")
        self.model = model
        most = torch.get_num_threads()
        self.threads = threads or (most if _weights(model) >= SHARED_WEIGHTS else 1)
        columns, texts = ([threads], [threads]) if threads else (_halvings(self.threads), _halvings(most))
        self.reason = why_not_by_rows(model)
        if self.reason and weights != "float32":
            raise ValueError(f"{weights} weights need decoding by rows, and {self.reason}; use weights='float32'")
        self._decoder = None if self.reason else _make_decoder(model, weights, columns, texts, top_k)
        # what an intervention calls may be no work of the GPU alone
        self._forward = ForwardStep(model, None if is_intervened(model) else capture_of(model))
        self._texts: int | None = None
        # what draws tokens too
        self._writer = cast("RowDecoder | None", self._decoder if model.device.type == "cpu" else None)
        self._choosers: Sequence[Chooser] | None = None
        self.by_rows, self._is_chosen = False, True

    def start(self, state: State, by_rows: bool | None = None) -> None:
        """Take over the state (of one or several texts) that reading the beginning of the texts has left.

        `by_rows` says whether rows are gathered, or one dense pass serves all texts; None reads the first token by
        rows, and goes on with what is faster at the density seen.

        Raises:
            ValueError: `by_rows` is asked for and cannot be; the state is no state of this model.
        """
        texts = texts_of(state) if isinstance(state, tuple) else None
        if texts is None:
            raise ValueError("start: want the state that the model returned for the beginning of the texts")
        # another forward pass may have another state
        if type(self.model).forward is SpikeGPT.forward:
            self.model.check_state(state, texts)
        if by_rows and self._decoder is None:
            raise ValueError(f"this model cannot be decoded by rows: {self.reason}")
        self.by_rows = self._decoder is not None if by_rows is None else by_rows
        self._is_chosen, self._texts, self._choosers = by_rows is not None, texts, None
        self._reader().take(state)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each text, (B,), and return the logits of the next, (B, vocab_size).

        Raises:
            ValueError: not one token of the vocabulary per text, or no text was started.
        """
        if self._texts is None:
            raise ValueError(
                "step: no text was started; call start(state) with the state that reading its beginning has left"
            )
        is_whole = isinstance(tokens, Tensor) and not (tokens.is_floating_point() or tokens.dtype == torch.bool)
        if not is_whole or tuple(tokens.shape) != (self._texts,):
            found = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else f"{tokens!r:.80}"
            raise ValueError(
                f"step: want {self._texts} token ids, one per text, as a tensor ({self._texts},) of whole numbers, "
                f"got {found}"
            )
        logits = self._reader().step(tokens)
        if self.by_rows and self._decoder is not None and not self._is_chosen:
            self._choose(self._decoder, len(tokens))
        return logits

    def write(self, logits: Tensor, choosers: Sequence[Chooser], most: int) -> tuple[np.ndarray, Tensor]:
        """Draw a token of each text and read it, as often as it takes no longer than a reader notices.

        Args:
            logits: (B, vocab_size), those of the next token.
            choosers: of the texts, one for each, always the same ones until other texts are started.
            most: tokens of each text that are wanted; at least 1.

        Returns:
            The tokens (B, at most `most`), and the logits after the last, (B, vocab_size).

        Raises:
            SpikegptError: a logit is NaN or infinite.
            ValueError: no text was started, or not one chooser per text.
        """
        if self._texts is None or len(choosers) != self._texts:
            started = "no text was started" if self._texts is None else f"{self._texts} texts were started"
            raise ValueError(f"write: want a chooser for each text, got {len(choosers)}, and {started}")
        writer = self._writer if self.by_rows and self._is_chosen else None
        if writer is None or any(chooser.sampling != choosers[0].sampling for chooser in choosers):
            chosen = [chooser.choose(one) for chooser, one in zip(choosers, logits, strict=True)]
            return np.array(chosen)[:, None], self.step(torch.tensor(chosen, device=self.model.device))
        if self._choosers is not choosers:
            seen = np.stack([chooser.seen.numpy() for chooser in choosers])
            writer.draw_with(choosers[0].settings(), choosers[0].may_be.numpy(), seen)
            self._choosers = choosers
        turns = min(writer.turns(), most)
        tokens, logits = writer.write(logits, np.stack([chooser.uniforms(turns) for chooser in choosers]))
        if tokens.min() < 0:
            raise not_finite()
        for chooser, drawn in zip(choosers, tokens, strict=True):
            chooser.seen[torch.from_numpy(drawn)] = True
        return tokens, logits

    def _reader(self) -> Decoder | ForwardStep:
        return self._decoder if self.by_rows and self._decoder is not None else self._forward

    def _choose(self, decoder: Decoder, texts: int) -> None:
        """Go on with the model's forward pass if it is faster; one text is always read by rows."""
        self._is_chosen = True
        if texts > 1 and texts * decoder.density() > GATHERED_TEXTS:
            self._forward.take(decoder.give())
            self.by_rows = False

    def state(self) -> State | None:
        """Return the state after the last token, as the model's forward pass takes it."""
        return None if self._texts is None else self._reader().give()

    def density(self) -> float:
        """Return the share of the weights read per token so far; 1 before any token was read by rows.

        In a spike-driven model with a spiking head it is the mean firing rate, weighted by synapses.
        """
        return self._decoder.density() if self._decoder is not None else 1.0

    def spike_counts(self) -> dict[str, int]:
        """Return layer of neurons -> how many fired, over all tokens read by rows; of a spike-driven model."""
        return self._decoder.spike_counts() if self._decoder is not None else {}

    def sharings(self) -> list[str]:
        """Return how many threads share a token, and how, in words: the ways that may still be the fastest.

        One is left once each has been tried; there is none where rows are not gathered on the CPU.
        """
        return self._decoder.sharings() if self.by_rows and self._decoder is not None else []


def _weights(model: nn.Module) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def _halvings(threads: int) -> list[int]:
    return [threads >> halvings for halvings in range(threads.bit_length())]


def _make_decoder(
    model: SpikeGPT, weights: str, threads: list[int], text_threads: list[int], top_k: int | None
) -> Decoder:
    if model.device.type == "cuda":
        return EventDecoder(model, weights)
    from .compiled.decoder import RowDecoder

    return RowDecoder(model, weights, threads, text_threads, top_k=top_k)


def why_not_by_rows(model: SpikeGPT) -> str:
    """Return why rows of `model` cannot be gathered, or an empty string if they can."""
    device, dtype = model.device.type, model.emb.weight.dtype
    if is_sharded(model.emb.weight):
        return "its weights lie in several processes"
    if type(model).forward is not SpikeGPT.forward:
        return f"{type(model).__name__} has a forward pass of its own"
    if is_intervened(model):
        return "neurons of it are silenced, stimulated or replaced"
    if model.config.perspectives > 1:
        return f"it reads every text from {model.config.perspectives} perspectives"
    if device == "cuda":
        if not model.synapses():
            return "no product of it reads spikes"
        return "" if is_installed("cupy") else "cupy is not installed"
    if device != "cpu":
        return f"the model is on {model.device}"
    if model.config.mixer not in TOKEN_STEPS:
        return f"there is no compiled token step for the mixer {model.config.mixer!r}"
    if dtype not in (torch.float32, torch.float64):
        return f"the model is in {dtype}"
    if model.config.rescale_every:
        return "it is rescaled as in published inference"
    if not is_installed("numba"):
        return "numba is not installed"
    return differing_neurons(model)
