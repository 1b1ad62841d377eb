"""The next token, drawn from logits.

A draw takes one number in [0, 1): tokens lie beside each other in their order, each as long as it is likely, and the
one on which the number falls is taken. `compiled/drawing.py` does the same without a call of torch.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..common.errors import SpikegptError
from ..config import SamplingConfig
from ..kernels.backends import is_installed

if TYPE_CHECKING:
    from .compiled.drawing import Drawer

# numbers that are drawn from a generator at once
DRAWN_TOGETHER = 64
# as many seeds as a generator takes
SEEDS = 1 << 64


def sample(logits: Tensor, sampling: SamplingConfig, seen: Tensor, uniform: float) -> int:
    """Return the id of the next token.

    A temperature so small that the logits divided by it are beyond float32 acts as 0.

    Args:
        logits: (vocab_size,) float32 on the CPU; -inf for what is never to be chosen.
        seen: (vocab_size,) bool, tokens that the repetition penalty divides (positive logits) or multiplies (negative).
        uniform: a number in [0, 1).

    Raises:
        SpikegptError: a logit is NaN or infinite.
    """
    if not logits.max().isfinite():
        raise not_finite()
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits / sampling.temperature
    if not scaled.max().isfinite():
        return int(logits.argmax())
    if 0 < sampling.top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], float("-inf"))
    probabilities = torch.softmax(scaled.double(), dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # a token stays if those before it have not yet reached top_p; the first always stays
        is_out = ordered.cumsum(0) - ordered >= sampling.top_p
        is_out[0] = False
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered.masked_fill(is_out, 0))
    reached = probabilities.cumsum(0)
    # where rounding lets the number fall behind the last, it is on the last
    return min(int((reached <= uniform * reached[-1]).sum()), int(probabilities.nonzero()[-1]))


def not_finite() -> SpikegptError:
    """Return the error for logits of which one is NaN or infinite."""
    return SpikegptError(
        "the model predicts NaN or infinity: its weights are broken, or training diverged; use another checkpoint"
    )


class Chooser:
    """Draws the tokens of one text.

    Args:
        seed: of the generator of this text.
        may_be: (vocab_size,) bool, the tokens that exist.
        seen: those of the prompt, which a repetition penalty concerns.
    """

    def __init__(self, sampling: SamplingConfig, seed: int, may_be: Tensor, seen: Tensor):
        self.sampling, self.may_be = sampling, may_be
        self.seen = torch.zeros(len(may_be), dtype=torch.bool)
        self.seen[seen] = True
        self._generator = torch.Generator().manual_seed(seed % SEEDS)
        self._uniforms = np.empty(0)
        self._drawer = self._compiled() if is_installed("numba") else None

    def _compiled(self) -> "Drawer":
        from .compiled.drawing import Drawer

        return Drawer(self.settings(), self.may_be.numpy(), self.seen.numpy())

    def settings(self) -> tuple[float, float, float, float]:
        """Return temperature, top_k, top_p and repetition penalty, as compiled code takes them."""
        sampling = self.sampling
        return sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty

    def uniforms(self, count: int) -> np.ndarray:
        """Take the next numbers in [0, 1) from the generator of this text, (count,)."""
        while len(self._uniforms) < count:
            more = torch.rand(DRAWN_TOGETHER, dtype=torch.float64, generator=self._generator)
            self._uniforms = np.concatenate([self._uniforms, more.numpy()])
        taken, self._uniforms = self._uniforms[:count], self._uniforms[count:]
        return taken

    def choose(self, logits: Tensor) -> int:
        """Draw the next token by its logits (vocab_size,).

        Raises:
            SpikegptError: a logit is NaN or infinite.
        """
        logits, uniform = logits.float().cpu(), float(self.uniforms(1)[0])
        if self._drawer is None:
            allowed = logits.masked_fill(~self.may_be, float("-inf"))
            token = sample(allowed, self.sampling, self.seen, uniform)
        else:
            token = self._drawer.draw(logits.detach().numpy(), uniform)
            if token < 0:
                raise not_finite()
        self.seen[token] = True
        return token
