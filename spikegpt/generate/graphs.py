"""A model's forward pass for one token of each text, on a GPU replayed as a CUDA graph.

A token of a small model is hundreds of kernels of a few microseconds each, and Python takes longer to launch one than
it runs. A graph launches all of them at once, on the memory that they had when it was made: so tokens and state lie in
buffers, which it reads and leaves the next state in.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..model.network import SpikeGPT
from ..model.state import State
from ..neuron.lif import LIF

Run = Callable[[], None]


class ForwardStep:
    """Reads one token of each text by `model.forward` and carries the state.

    Args:
        capture: makes of a function what does the same again on the same memory, without running it now; None reads
            each token anew.
    """

    def __init__(self, model: SpikeGPT, capture: Callable[[Run], Run] | None = None):
        self._model, self._capture = model, capture
        self._state, self._replay, self._is_begun = cast(State, ()), cast(Run | None, None), False
        self._tokens = self._logits = torch.empty(0)

    def take(self, state: State) -> None:
        """Go on from this state."""
        self._state, self._replay, self._is_begun = state, None, False

    def give(self) -> State:
        """Return the state after the last token; no later one changes it."""
        return self._state if self._replay is None else _copied(self._state)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Return the logits (texts, vocab_size) after one more token of each text, (texts,)."""
        tokens = tokens.to(self._model.device).unsqueeze(1)
        # the first token compiles kernels, and says which parts a state has
        if self._capture is None or not self._is_begun:
            output = self._model(tokens, self._state)
            self._state, self._is_begun = output.state, True
            return output.logits[:, -1]
        if self._replay is None:
            self._tokens, self._state = tokens.clone(), _copied(self._state)
            self._replay = self._capture(self._run)
        self._tokens.copy_(tokens)
        self._replay()
        return self._logits.clone()

    def _run(self) -> None:
        output = self._model(self._tokens, self._state)
        for kept, new in zip(tree_leaves(self._state), tree_leaves(output.state), strict=True):
            if isinstance(kept, Tensor):
                kept.copy_(new)
        self._logits = output.logits[:, -1]


def _copied(state: State) -> State:
    return tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, state)


def capture_of(model: SpikeGPT) -> Callable[[Run], Run] | None:
    """Return what makes CUDA graphs of `model`; None on other devices, where a state grows or others' code waits."""
    if model.device.type != "cuda" or type(model).forward is not SpikeGPT.forward:
        return None
    # a graph leaves the next state where it found this one
    if any(half.state_grows for block in model.blocks for half in (block.att, block.ffn)):
        return None
    return _cuda_graph if all(isinstance(placed.neuron, LIF) for placed in model.sites().values()) else None


def _cuda_graph(run: Run) -> Run:
    graph = torch.cuda.CUDAGraph()
    # other threads of the program may go on using the GPU
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay
