"""What decoding computes, counted afterwards: a text costs the same token by token as it does read in one pass."""

import torch
from torch import Tensor

from neuromorphic import OpCounter, Tally

from ..model.network import SpikeGPT, evaluating
from ..model.state import State


@torch.inference_mode()
def count_decoding(model: SpikeGPT, tokens: Tensor, state: State | None = None, chunk: int = 512) -> Tally:
    """Return what `model` computes when it reads `tokens` (B, T) one by one, going on from `state`.

    Each count is the one of an OpCounter around the token steps, but for `calls`: what a token costs depends on its
    values, not on those that are read beside it. (Sums of real numbers that are 0 in one order and almost 0 in another
    may differ, as they do between two machines.) A generated text is counted in a small part of the time that it took
    to generate, and the engine, in which no operator can be seen, needs no counter of its own: give the tokens that it
    read. The phase is "decode"; `chunk` tokens are read at a time.
    """
    counter = OpCounter(model)
    with evaluating(model), counter, counter.phase("decode"):
        for part in tokens.split(chunk, dim=1):
            state = model(part, state).state
    return counter.tally()
