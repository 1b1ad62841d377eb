"""Neurons of other libraries in the place of our LIF, with the state carried from call to call."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..kernels.operators import product_dtype
from .proof import library_of


class _ForeignNeuron(nn.Module):
    """What both adapters share: the module inside, its numbers, and the proof that it does not look ahead."""

    # another library's: what it has besides `forward` is its own affair
    neuron: Any

    library: ClassVar[str]
    """whose neurons the adapter is for"""

    def __init__(self, neuron: nn.Module):
        super().__init__()
        if not isinstance(neuron, nn.Module):
            raise ValueError(f"{type(self).__name__} wants a neuron of {self.library}, got {neuron!r:.80}")
        if library_of(neuron) in {"snntorch", "spikingjelly"} - {self.library}:
            raise ValueError(
                f"{type(neuron).__name__} is of {library_of(neuron)}; {type(self).__name__} is for {self.library}"
            )
        self.neuron = neuron

    def forward(self, current: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return (spikes (B, T, C), state); where products are autocast, what happens inside stays in float32."""
        if product_dtype(current) is not None:
            with torch.autocast(current.device.type, enabled=False):
                spikes, state = self._fire(current.float(), state)
        else:
            spikes, state = self._fire(current, state)
        return spikes.to(current.dtype), state

    def _fire(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError

    @staticmethod
    def op_cost(args: tuple, kwargs: dict, output: tuple[Tensor, Any]) -> dict[str, int | str]:
        """What it carries from token to token, for dispatch-mode counters; what it computes they see for themselves."""
        spikes, state = output
        memories = [part for part in tree_leaves(state) if isinstance(part, Tensor) and part.dim() == 2]
        touched = len(memories) * spikes.numel()
        return {
            "kind": "neuron",
            "state_elements": len(memories) * spikes.shape[-1],
            "state_reads": touched,
            "state_writes": touched,
        }

    def check_causal(self, channels: int, tokens: int = 4) -> None:
        """Raise ValueError if a neuron's spike depends on a later token: a language model would read its own answer."""
        generator = torch.Generator().manual_seed(0)
        example = next(self.parameters(), torch.zeros(()))
        current = 2 * torch.randn(1, tokens, channels, generator=generator).to(example)
        changed = current.clone()
        changed[:, -1] += 10
        with torch.no_grad():
            before, after = self(current)[0], self(changed)[0]
        if not torch.equal(before[:, :-1], after[:, :-1]):
            raise ValueError(
                f"{type(self.neuron).__name__} lets a token see later tokens, which a language model must not; "
                "use a causal one"
            )


class SpikingJellyNeuron(_ForeignNeuron):
    """Any SpikingJelly multi-step neuron in the place of our LIF:
    `SpikingJellyNeuron(ParametricLIFNode(step_mode="m"))`.

    The state is the neuron's own memories (membrane potential and the like), or, for the parallel spiking neurons
    (PSN and its kin), which have no recurrent form, the currents so far. A PSN mixes exactly T time steps, later ones
    too: its weight is masked to the past, and texts longer than its T are refused.

    Raises:
        ValueError: the neuron is another library's, or not in multi-step mode.
    """

    library = "spikingjelly"

    def __init__(self, neuron: nn.Module):
        super().__init__(neuron)
        if getattr(neuron, "step_mode", "m") != "m":
            raise ValueError(
                f"{type(neuron).__name__} has step_mode={neuron.step_mode!r}; a sequence needs step_mode='m'"
            )
        self.is_parallel = not hasattr(neuron, "v")
        weight = getattr(neuron, "weight", None)
        if self.is_parallel and weight is not None and weight.dim() == 2 and not hasattr(neuron, "lambda_"):
            nn.utils.parametrize.register_parametrization(neuron, "weight", _LowerTriangular())

    def _fire(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self._parallel(current, state) if self.is_parallel else self._recurrent(current, state)

    def _recurrent(self, current: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
        self.neuron.reset()
        for name, memory in (state or {}).items():
            setattr(self.neuron, name, memory)
        spikes = self.neuron(current.transpose(0, 1)).transpose(0, 1)
        # v_seq and the like are records of the past, of length T; the memories are what the next step needs
        state = {
            name: value
            for name, value in self.neuron.named_memories()
            if isinstance(value, Tensor) and not name.endswith("_seq")
        }
        self.neuron.reset()
        return spikes, state

    def _parallel(self, current: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        T = current.shape[1]
        whole = current if past is None else torch.cat([past, current], dim=1)
        longest = getattr(self.neuron, "T", None)
        if longest is not None and whole.shape[1] > longest:
            raise ValueError(
                f"{type(self.neuron).__name__} was made for T={longest} tokens, the text has {whole.shape[1]}; "
                "make it with a larger T"
            )
        padding = 0 if longest is None else longest - whole.shape[1]
        drive = nn.functional.pad(whole, (0, 0, 0, padding)).transpose(0, 1).contiguous()
        spikes = self.neuron(drive).transpose(0, 1)[:, : whole.shape[1]]
        return spikes[:, -T:], whole


class _LowerTriangular(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tril()


class SnnTorchNeuron(_ForeignNeuron):
    """An snnTorch neuron in the place of our LIF: `SnnTorchNeuron(snn.Leaky(beta=0.5))`. Fires at >, not at >=.

    The state is the tuple that the neuron begins with (membrane, or synapse and membrane, ...; of a recurrent one its
    spikes too).

    Raises:
        ValueError: the neuron is another library's, or keeps its own hidden state (`init_hidden=True`), which could not
            be carried.
    """

    library = "snntorch"

    def __init__(self, neuron: nn.Module):
        super().__init__(neuron)
        if getattr(neuron, "init_hidden", False):
            raise ValueError(
                f"{type(neuron).__name__} was made with init_hidden=True; "
                "make it with init_hidden=False, the model carries the state"
            )

    def _fire(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is None:
            first = self.neuron.reset_mem()
            state = first if isinstance(first, tuple) else (first,)
        spikes = []
        for drive in current.unbind(dim=1):
            after = self.neuron(drive, *state)
            spikes.append(after[0])
            # a recurrent neuron reads its own spikes again
            state = after if len(after) == len(state) else after[1:]
        return torch.stack(spikes, dim=1), tuple(state)
