"""Multiple Temporal Perspectives: streams that read one text with token mixes of their own, and how they are joined.

All perspectives are rows of one batch, (P * B, T, C), those of the first perspective first, and go through the same
blocks: RWKV-4's halves give each its own mix of tokens, all other weights are shared. Outside of the network a text is
one row again: states are (B, P, ...), spikes (B, T, P * C).
Source: arXiv 2402.02625; github.com/RazvanDu/TemporalRNNs, MultiplePerspectives/src/model_ours.py, which weighs logits:
the head is linear, so that weighing what it reads is the same with one product of it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from .state import State

# of the weights that join them, at the beginning; whatever they are, equal perspectives are the model of one
JOINING_STD = 0.01


class Perspectives(nn.Module):
    """Joins P perspectives: softmax(weight . mean of them) says how much of each a token takes. weight (P, C)."""

    def __init__(self, channels: int, perspectives: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(perspectives, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=JOINING_STD)

    def forward(self, x: Tensor, state: State) -> Tensor:
        """Return x (P * B, T, C) as one stream, (B, T, C); `state` (B, P, ...) is what all perspectives carry."""
        each = x.unflatten(0, (len(self.weight), -1))
        shares = F.linear(each.mean(dim=0), self.weight).softmax(dim=-1)
        return (each * shares.movedim(-1, 0).unsqueeze(-1)).sum(dim=0)

    @staticmethod
    def op_cost(args: tuple, kwargs: dict, output: Any) -> dict[str, int]:
        """What a text carries beyond its first perspective: to the blocks every perspective is a text."""
        parts = [part for part in tree_leaves(args[1]) if isinstance(part, Tensor)]
        return {"state_elements": sum(part[0, 1:].numel() for part in parts)}


def as_rows(state: Any, perspectives: int) -> Any:
    """Return a state (B, P, ...), or a part of one, as that of P * B rows, which the blocks carry.

    Raises:
        ValueError: it is of another number of perspectives.
    """
    if perspectives == 1:
        return state

    def of_rows(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        if part.shape[1] != perspectives:
            raise ValueError(
                f"the state does not fit: it is of {part.shape[1]} perspectives, this model has {perspectives}; "
                "carry on with what this model returned for these texts"
            )
        return part.transpose(0, 1).flatten(0, 1)

    return tree_map(of_rows, state)


def as_texts(state: Any, perspectives: int) -> Any:
    """Return what `as_rows` was given."""
    if perspectives == 1:
        return state

    def of_texts(rows: Any) -> Any:
        return rows.unflatten(0, (perspectives, -1)).transpose(0, 1) if isinstance(rows, Tensor) else rows

    return tree_map(of_texts, state)


def spikes_of_texts(spikes: Tensor, perspectives: int) -> Tensor:
    """Return spikes (P * B, T, C) as those of all perspectives beside each other, (B, T, P * C)."""
    return spikes if perspectives == 1 else spikes.unflatten(0, (perspectives, -1)).permute(1, 2, 0, 3).flatten(2)
