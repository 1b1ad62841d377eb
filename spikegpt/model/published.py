"""A fault of the published inference, for those who want its numbers: the stream rescaled from layer to layer.

Its place is here, and not where published weights are read, because the configuration of a folder brings it back,
whoever loads it. The block itself knows nothing of it.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from .mixers import Mixed

if TYPE_CHECKING:
    from .network import Block


def rescale_stream(blocks: "Sequence[Block]", every: int) -> None:
    """Halve what each `every`-th of `blocks` gives, and divide what both halves of block l add by 2^(l // every).

    Exact for a dense model; before a neuron it weakens the current. Source: github.com/ridgerchu/SpikeGPT,
    src/model_run.py.
    """
    for layer, block in enumerate(blocks):
        drive = 2.0 ** -(layer // every)
        if drive != 1.0:
            for half in (block.att, block.ffn):
                half.register_forward_hook(partial(_weaken, drive=drive))
        if (layer + 1) % every == 0:
            block.register_forward_hook(_halve)


def _weaken(half: nn.Module, inputs: tuple, mixed: Mixed, drive: float) -> Mixed:
    return mixed._replace(y=drive * mixed.y)


def _halve(block: nn.Module, inputs: tuple, output: tuple) -> tuple:
    x, *rest = output
    return x / 2, *rest
