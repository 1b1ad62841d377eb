"""The state of layers that loop over a text in one call, where no operator shows what is carried: torch's recurrent
layers, and SpikingJelly's neurons, which keep their memories by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def has_state_cost(module: nn.Module) -> bool:
    """True for the modules that `state_cost` knows."""
    return isinstance(module, nn.RNNBase | nn.RNNCellBase) or getattr(module, "step_mode", None) == "m"


def state_cost(module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any) -> dict[str, int]:
    """Return reads and writes of the state in one call: all of it, for every token of every text."""
    x = args[0] if args else next(iter(kwargs.values()))
    if isinstance(x, PackedSequence):
        x = x.data
    if isinstance(module, nn.RNNBase):
        hidden, cell = module.proj_size or module.hidden_size, module.hidden_size * isinstance(module, nn.LSTM)
        state = module.num_layers * (1 + module.bidirectional) * (hidden + cell)
        tokens = x.shape[:-1].numel()
    elif isinstance(module, nn.RNNCellBase):
        state, tokens = module.hidden_size * (1 + isinstance(module, nn.LSTMCell)), x.shape[:-1].numel()
    else:
        # time is first; a memory that is one number is its value before the first step
        memories = [value for value in getattr(module, "_memories", {}).values() if isinstance(value, Tensor)]
        state, tokens = sum(value[0].numel() for value in memories if value.dim()), x.shape[:2].numel()
    return {"state_reads": tokens * state, "state_writes": tokens * state, "state_elements": state}
