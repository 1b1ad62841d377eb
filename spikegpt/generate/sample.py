"""The next token, drawn from logits."""

import torch
from torch import Tensor

from ..config import SamplingConfig


def sample(logits: Tensor, sampling: SamplingConfig, seen: Tensor, generator: torch.Generator) -> Tensor:
    """Return the id (scalar tensor) of the next token.

    Args:
        logits: (vocab_size,) float32 on the CPU.
        seen: (vocab_size,) bool, tokens that the repetition penalty divides (positive logits) or multiplies (negative).
    """
    if sampling.repetition_penalty != 1.0:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.temperature == 0:
        return logits.argmax()
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], float("-inf"))
    probabilities = torch.softmax(logits, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # a token stays if those before it have not yet reached top_p; the first always stays
        probabilities = torch.zeros_like(probabilities).scatter(
            0, order, ordered.masked_fill(ordered.cumsum(0) - ordered >= sampling.top_p, 0)
        )
    return torch.multinomial(probabilities, 1, generator=generator)[0]
