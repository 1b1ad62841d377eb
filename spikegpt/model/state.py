"""What a model carries from token to token, a tree of tensors with the texts first: joined, picked apart, cut off."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class BlockState(NamedTuple):
    """What one block carries: of each half what its mixer says, and of the published block's neurons behind it."""

    time_mix: Any
    time_mix_neuron: Any
    channel_mix: Any
    channel_mix_neuron: Any


State = tuple[BlockState, ...]


def detach_state(state: State) -> State:
    """Return the state without its history of gradients, for truncated backpropagation."""
    return tree_map(lambda part: part.detach() if isinstance(part, Tensor) else part, state)


def join_states(states: Sequence[State]) -> State:
    """Return the states of several texts as the state of one batch."""
    return tree_map(lambda first, *rest: torch.cat([first, *rest]) if isinstance(first, Tensor) else first, *states)


def select_texts(state: State, texts: Sequence[int]) -> State:
    """Return the state of the batch that consists of these texts (places in the batch of `state`), in this order."""
    return tree_map(lambda part: part[list(texts)] if isinstance(part, Tensor) else part, state)


def membranes_of(state: State) -> State:
    """Return the state of a text's beginning, but with the neurons of `state`."""

    def of_half(half: Any) -> Any:
        return half._replace(**{name: None for name in half._fields if name != "neurons"})

    return tuple(
        block._replace(time_mix=of_half(block.time_mix), channel_mix=of_half(block.channel_mix)) for block in state
    )
