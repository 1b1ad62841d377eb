"""The weights that an optimizer steps, where the model computes with codes of a few bits.

Between two steps a model of `weight_bits` holds what will be used of it: whole numbers of steps (model/quantised.py).
They are what is trained with, evaluated and saved. For the time of an optimizer step the latent float32 weights take
their place, from which the codes are made; the gradient is that of the codes, passed straight through.
Source: OFQ (Liu et al. 2023, arXiv 2302.02210) for the codes, and for which of them may still change.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.run import read_model_config
from ..checkpoint.weights import TensorFile
from ..common.errors import SpikegptError
from ..model.network import SpikeGPT
from ..model.quantised import FULL, low_bit_matrices, near_another_code, quantise


@torch.no_grad()
def start_latent(model: SpikeGPT, start: Path, confident: float) -> None:
    """Put into `model`, which begins with the run in the folder `start`, that run's latent weights.

    Without them it begins with what the codes stand for, all equally far from changing.

    Raises:
        SpikegptError: only weights near another code may change, and nothing says which these are.
    """
    config, kept = read_model_config(start / "config.json"), start / "training.safetensors"
    is_same = (config.weight_bits, config.spiking) == (model.config.weight_bits, model.config.spiking)
    tensors = TensorFile(kept) if is_same and kept.is_file() else {}
    matrices = low_bit_matrices(model, model.config.weight_bits)
    names = [name for name in matrices if f"latent.{name}" in tensors]
    for name in names:
        matrices[name][0].copy_(tensors[f"latent.{name}"])
    if confident and not names:
        raise SpikegptError(
            f"--confident needs a run to begin with whose weights have {model.config.weight_bits:g} bits too, and its "
            f"checkpoint; {start} is none"
        )


class LatentWeights:
    """The latent weights of `model`, whose matrices become what their codes stand for.

    Args:
        confident: only weights that lie within so many levels of another code may change, as in the last phase of OFQ;
            0: all may.
    """

    @torch.no_grad()
    def __init__(self, model: SpikeGPT, confident: float = 0.0):
        self._model, self._confident = model, confident
        self._matrices = low_bit_matrices(model, model.config.weight_bits)
        self.tensors = {name: matrix.detach().clone() for name, (matrix, _) in self._matrices.items()}
        self._codes: dict[str, Tensor] = {}
        self._free: dict[str, Tensor] = {}
        self.changed = 0.0
        """share of all codes that the last step changed"""
        self._quantise()

    @torch.no_grad()
    def enter(self, *_: Any) -> None:
        """Put the latent weights into the model, and take the gradient of those that may not change."""
        for name, (matrix, bits) in self._matrices.items():
            # the model may have gone to another device since
            latent = self.tensors[name] = self.tensors[name].to(matrix.device)
            matrix.copy_(latent)
            if self._confident:
                self._free[name] = near_another_code(latent, bits, self._confident)
                if matrix.grad is not None:
                    matrix.grad.mul_(self._free[name])

    @torch.no_grad()
    def leave(self, *_: Any) -> None:
        """Take the latent weights out again, with what the step has made of them."""
        for name, (matrix, _bits) in self._matrices.items():
            latent = self.tensors[name]
            # weight decay and momentum move what has no gradient
            latent.copy_(torch.where(self._free[name], matrix, latent) if self._confident else matrix)
        self._quantise()

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back the latent weights of a checkpoint, whose codes the model holds."""
        for name, latent in self.tensors.items():
            latent.copy_(tensors[name])
        self._quantise()

    def _quantise(self) -> None:
        weights, changed = 0, 0
        for name, (matrix, bits) in self._matrices.items():
            found = quantise(self.tensors[name], bits)
            matrix.copy_(found.numbers())
            self._model.weight_steps[name] = found.step
            weights += matrix.numel()
            if name in self._codes:
                changed += int(torch.count_nonzero(found.codes != self._codes[name].to(found.codes.device)))
            self._codes[name] = found.codes
        self.changed = changed / weights


def latent_of(model: SpikeGPT, confident: float = 0.0) -> LatentWeights | None:
    """Return the latent weights of `model`, or None if its weights are float32 numbers."""
    return LatentWeights(model, confident) if model.config.weight_bits < FULL else None
