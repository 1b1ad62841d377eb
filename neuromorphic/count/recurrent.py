"""The state that torch's own recurrent layers carry, which cannot be seen in the operators that they are made of."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils.rnn import PackedSequence


def state_cost(module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any) -> dict[str, int] | None:
    """Return reads and writes of the state in one call of a layer or cell, None for any other module.

    All of it is read and written for every token of every text.
    """
    if isinstance(module, nn.RNNBase):
        hidden = module.proj_size or module.hidden_size
        state = (
            module.num_layers * (1 + module.bidirectional) * (hidden + module.hidden_size * isinstance(module, nn.LSTM))
        )
        vectors = 2
    elif isinstance(module, nn.RNNCellBase):
        state, vectors = module.hidden_size * (1 + isinstance(module, nn.LSTMCell)), 1
    else:
        return None
    x = args[0] if args else kwargs["input"]
    if isinstance(x, PackedSequence):
        x = x.data
    tokens = x.shape[:-1].numel() if x.dim() >= vectors else 1
    return {"state_reads": tokens * state, "state_writes": tokens * state, "state_elements": state}
