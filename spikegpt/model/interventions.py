"""Neurons silenced, stimulated or replaced while a model runs: by site and channel, for as long as a block lasts.

    with silenced(model, "blocks.0.att.*", channels=[3, 5]):
        model(ids)

What the model reads, trains or writes meanwhile is so changed; its weights are not. A membrane goes on as if its own
neuron had fired. An engine that was made before the block knows nothing of it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import SpikegptError
from .network import SpikeGPT
from .sites import matching_sites

Channels = Sequence[int] | Tensor | None


@contextmanager
def replaced(
    model: SpikeGPT, sites: str | Sequence[str], change: Callable[[Tensor], Tensor], channels: Channels = None
) -> Iterator[None]:
    """Within this block `change` makes the spikes (B, T, n) of the neurons at `sites` anew from their own.

    Args:
        sites: patterns of names, see `matching_sites`.
        channels: which neurons of a site, n of them; all if None.

    Raises:
        SpikegptError: a pattern fits no site, or a channel is not there.
        ValueError: when the model runs: `change` makes another shape.
    """
    act = _Replacement(change, _checked(model, sites, channels))
    with ExitStack() as stack:
        for neuron in _neurons(model, sites):
            stack.callback(neuron.register_forward_hook(act).remove)
        yield


def silenced(model: SpikeGPT, sites: str | Sequence[str], channels: Channels = None) -> AbstractContextManager[None]:
    """Within this block the neurons at `sites` emit nothing; arguments and errors as of `replaced`."""
    return replaced(model, sites, torch.zeros_like, channels)


@contextmanager
def stimulated(
    model: SpikeGPT, sites: str | Sequence[str], current: float, channels: Channels = None
) -> Iterator[None]:
    """Within this block the neurons at `sites` are given so much `current` more at every token.

    In the units of what drives them (`trace(...).currents`); other arguments and errors as of `replaced`.
    """
    act = _Stimulus(lambda drive: drive + current, _checked(model, sites, channels))
    with ExitStack() as stack:
        for neuron in _neurons(model, sites):
            stack.callback(neuron.register_forward_pre_hook(act).remove)
        yield


def is_intervened(model: SpikeGPT) -> bool:
    """Whether some neurons of `model` are changed at present."""
    for placed in model.sites().values():
        hooks = (*placed.neuron._forward_hooks.values(), *placed.neuron._forward_pre_hooks.values())
        if any(isinstance(hook, _Intervention) for hook in hooks):
            return True
    return False


@dataclass(frozen=True)
class _Intervention:
    """What changes values (B, T, C) at `channels` (n,), or at all where that is None."""

    change: Callable[[Tensor], Tensor]
    channels: Tensor | None

    def changed(self, values: Tensor) -> Tensor:
        channels = None if self.channels is None else self.channels.to(values.device)
        found = values if channels is None else values[..., channels]
        made = self.change(found)
        if not isinstance(made, Tensor) or made.shape != found.shape:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"an intervention made {got} of {tuple(found.shape)}; want the same shape")
        return made.to(values.dtype) if channels is None else values.index_copy(-1, channels, made.to(values.dtype))


class _Replacement(_Intervention):
    def __call__(self, neuron: nn.Module, inputs: tuple, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        spikes, state = output
        return self.changed(spikes), state


class _Stimulus(_Intervention):
    def __call__(self, neuron: nn.Module, inputs: tuple) -> tuple:
        return self.changed(inputs[0]), *inputs[1:]


def _neurons(model: SpikeGPT, sites: str | Sequence[str]) -> list[nn.Module]:
    placed = model.sites()
    return [placed[name].neuron for name in matching_sites(model, sites)]


def _checked(model: SpikeGPT, sites: str | Sequence[str], channels: Channels) -> Tensor | None:
    """`channels` as a tensor (n,); SpikegptError unless every site has them."""
    placed = model.sites()
    widths = {name: placed[name].site.channels for name in matching_sites(model, sites)}
    if channels is None:
        return None
    chosen = torch.as_tensor(channels)
    is_whole = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    if chosen.dim() != 1 or not is_whole or len(set(chosen.tolist())) != len(chosen) or len(chosen) == 0:
        raise SpikegptError(f"channels must be distinct whole numbers, at least one, got {channels!r:.80}")
    for name, width in widths.items():
        for channel in chosen.tolist():
            if not 0 <= channel < width:
                raise SpikegptError(f"{name} has no channel {channel}; its channels are 0 to {width - 1}")
    return chosen.long()
