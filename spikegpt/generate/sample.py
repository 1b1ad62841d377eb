"""The next token, drawn from logits."""

import torch
from torch import Tensor

from ..common.errors import SpikegptError
from ..config import SamplingConfig


def sample(logits: Tensor, sampling: SamplingConfig, seen: Tensor, generator: torch.Generator) -> Tensor:
    """Return the id (scalar tensor) of the next token.

    A temperature so small that the logits divided by it are beyond float32 acts as 0.

    Args:
        logits: (vocab_size,) float32 on the CPU; -inf for what is never to be chosen.
        seen: (vocab_size,) bool, tokens that the repetition penalty divides (positive logits) or multiplies (negative).

    Raises:
        SpikegptError: a logit is NaN or infinite.
    """
    if not logits.max().isfinite():
        raise SpikegptError(
            "the model predicts NaN or infinity: its weights are broken, or training diverged; use another checkpoint"
        )
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return logits.argmax()
    scaled = logits / sampling.temperature
    if not scaled.max().isfinite():
        return logits.argmax()
    if 0 < sampling.top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], float("-inf"))
    probabilities = torch.softmax(scaled, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # a token stays if those before it have not yet reached top_p; the first always stays
        is_out = ordered.cumsum(0) - ordered >= sampling.top_p
        is_out[0] = False
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered.masked_fill(is_out, 0))
    return torch.multinomial(probabilities, 1, generator=generator)[0]
