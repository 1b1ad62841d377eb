"""What a model carries from token to token, a tree of tensors with the texts first: joined, picked apart, cut off."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map


class BlockState(NamedTuple):
    """What one block carries: of each half what its mixer says, and of the published block's neurons behind it."""

    time_mix: Any
    time_mix_neuron: Any
    channel_mix: Any
    channel_mix_neuron: Any


State = tuple[BlockState, ...]


class TensorForm(NamedTuple):
    """What a tensor of a state looks like in every text: how many dimensions it has, and its width."""

    dims: int
    width: int


def form_of(state: Any) -> Any:
    """Return a state, or a part of one, as the same tree with the form of each tensor in its place."""
    return tree_map(lambda part: TensorForm(part.dim(), part.shape[-1]) if isinstance(part, Tensor) else part, state)


def fault_of(state: Any, form: Any, texts: int) -> str | None:
    """Return why `state` is none of `texts` texts of a model whose states have this form; None if it is.

    None in the place of any part is the beginning of a text.
    """
    if state is None:
        return None
    if isinstance(form, TensorForm):
        if not isinstance(state, Tensor) or TensorForm(state.dim(), state.shape[-1]) != form:
            found = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            return f"it holds {found} where this model has {form.dims} dimensions of width {form.width}"
        return None if len(state) == texts else f"it is of {len(state)} text(s), the ids are of {texts}"
    if type(state) is not type(form):
        return f"it holds a {type(state).__name__} where this model has a {type(form).__name__}"
    if isinstance(form, dict):
        if state.keys() != form.keys():
            return f"it is of neurons {', '.join(state)}, this model's are {', '.join(form)}"
        parts = [(state[name], form[name]) for name in form]
    elif isinstance(form, tuple | list):
        if len(state) != len(form):
            return f"it holds {len(state)} parts where this model has {len(form)}"
        parts = list(zip(state, form, strict=True))
    else:
        return None
    faults = (fault_of(part, inner, texts) for part, inner in parts)
    return next((fault for fault in faults if fault is not None), None)


def texts_of(state: State) -> int | None:
    """Return of how many texts a state is; None if it is of a beginning."""
    return next((len(part) for part in tree_leaves(state) if isinstance(part, Tensor)), None)


def detach_state(state: State) -> State:
    """Return the state without its history of gradients, for truncated backpropagation."""
    return tree_map(lambda part: part.detach() if isinstance(part, Tensor) else part, state)


def join_states(states: Sequence[State]) -> State:
    """Return the states of several texts as the state of one batch.

    Caches of fewer tokens than others get rows of zeros in front.
    """
    return tree_map(lambda *parts: _joined(parts) if isinstance(parts[0], Tensor) else parts[0], *states)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """(B, ...): the parts below each other, each side filled up in front to the longest."""
    sizes = [max(sides) for sides in zip(*(part.shape[1:] for part in parts), strict=True)]
    filled = []
    for part in parts:
        missing = [size - side for size, side in zip(sizes, part.shape[1:], strict=True)]
        # last side first, and of each what is put in front and behind
        filled.append(F.pad(part, [edge for gap in reversed(missing) for edge in (gap, 0)]) if any(missing) else part)
    return torch.cat(filled)


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
