"""A forward pass that keeps what neurons were given and what they made of it: currents, membranes, spikes, by site."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..neuron.lif import LIF
from .network import SpikeGPT, evaluating
from .state import State


@dataclass(frozen=True, kw_only=True, repr=False)
class Trace:
    """What a model made of a text, by site: names as in `SpikeGPT.sites`, tensors (B, T, C)."""

    logits: Tensor
    """(B, T, vocab_size)"""
    state: State
    """after the last token"""
    spikes: dict[str, Tensor]
    currents: dict[str, Tensor]
    """what neurons were given"""
    membranes: dict[str, Tensor]
    """potential that decides whether a neuron of ours (LIF) fires: charged by the token, not yet reset. Other neurons,
    whose state only they know, have none here"""
    thresholds: dict[str, Tensor]
    """of the same sites, (C,): a neuron fires where its membrane is not below"""

    def __repr__(self) -> str:
        texts, tokens = self.logits.shape[:2]
        return f"<Trace of {texts} x {tokens} tokens at {len(self.spikes)} sites>"


@torch.no_grad()
def trace(model: SpikeGPT, ids: Tensor, state: State | None = None) -> Trace:
    """Return the trace of `model` on ids (B, T), in evaluation mode, after `state`.

    Raises:
        ValueError: as in `SpikeGPT.forward`.
    """
    currents: dict[str, Tensor] = {}
    befores: dict[str, Tensor | None] = {}
    placed = model.sites()

    def watcher(name: str):
        def watch(neuron: nn.Module, inputs: tuple) -> None:
            currents[name] = inputs[0]
            befores[name] = inputs[1] if len(inputs) > 1 else None

        return watch

    with ExitStack() as stack, evaluating(model):
        for name, site in placed.items():
            # after all others: what these change is what a neuron is given
            hook = site.neuron.register_forward_pre_hook(watcher(name))
            stack.callback(hook.remove)
        output = model(ids, state)
    ours = {name: neuron for name in currents if isinstance(neuron := placed[name].neuron, LIF)}
    return Trace(
        logits=output.logits,
        state=output.state,
        # in the order in which they fire, and without the binary embedding, which is no neuron
        spikes={name: output.spikes[name] for name in currents},
        currents=currents,
        membranes={name: charged(neuron, currents[name], befores[name]) for name, neuron in ours.items()},
        thresholds={name: neuron.rows().threshold for name, neuron in ours.items()},
    )


@torch.no_grad()
def charged(neuron: LIF, current: Tensor, potential: Tensor | None) -> Tensor:
    """Return the potential (B, T, C) that each token of `current` charges a neuron to, before it fires and is reset.

    The equation is that of `NeuronRows`; `potential` (B, C) is what was carried in.
    """
    rows = neuron.rows(current.dtype if current.dtype == torch.float64 else torch.float32)
    driven = rows.gain * current.to(rows.gain.dtype) + rows.pull
    if not rows.remembers:
        return driven
    befores = []
    for token in current.split(1, dim=1):
        befores.append(torch.zeros_like(driven[:, 0]) if potential is None else potential.to(driven.dtype))
        # past the module's hooks, which have acted already
        _, potential = neuron.forward(token, potential)
    return rows.decay * torch.stack(befores, dim=1) + driven
