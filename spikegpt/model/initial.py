"""What a model begins with: RWKV's initialisation, and thresholds at which a given share of the neurons fires."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..neuron.lif import LIF
from ..neuron.thresholds import threshold_of_rate

if TYPE_CHECKING:
    from .network import SpikeGPT


@torch.no_grad()
def initialise(
    model: "SpikeGPT", opened: Callable[[nn.Module], AbstractContextManager[None]] = lambda module: nullcontext()
) -> None:
    """Fill `model` from torch's default generator: embedding and head here, halves of blocks as they do.

    Within `opened(module)` the weights of a module are whole, where each process holds a part of them.

    Source: RWKV-v4neo `generate_init_weight`. The published SpikeGPT script skips it by accident and trains from
    torch's defaults.
    """
    config = model.config
    C = config.n_embd
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    with opened(model.emb):
        nn.init.uniform_(model.emb.weight, -1e-4, 1e-4)
    with opened(model.head):
        if config.spiking == "input":
            # drawn anew below: seeds keep the meaning that they had while the head was made orthogonal here in vain
            nn.init.normal_(model.head.weight)
        else:
            nn.init.orthogonal_(model.head.weight, gain=0.5 * math.sqrt(max(config.vocab_size / C, 1)))
    if config.perspectives > 1:
        with opened(model.convert3):
            model.convert3.reset_parameters()
    for layer, block in enumerate(model.blocks):
        for half in (block.att, block.ffn):
            with opened(half):
                half.initialise(layer, config.n_layer)
    if config.spiking == "input":
        with opened(model.head):
            nn.init.normal_(model.head.weight, std=1 / math.sqrt(C))
        for neuron in (module for module in model.modules() if isinstance(module, LIF)):
            neuron.reset_parameters()
        calibrate_thresholds(model)


@torch.no_grad()
def calibrate_thresholds(model: "SpikeGPT", rate: float | None = None, tokens: int = 64) -> None:
    """Set the learnable thresholds, one number per layer, so that `rate` of its neurons fire on random text.

    None takes what each site asks for. Layer after layer in one pass over 4 x `tokens` random ids, drawn from torch's
    default generator.
    """
    found: list[tuple[LIF, float]] = []

    def calibrate(neuron: LIF, inputs: tuple[Tensor, ...], share: float) -> None:
        threshold = threshold_of_rate(inputs[0].float(), share, neuron.config.signed)
        # a layer that nothing reaches keeps its threshold
        if threshold > 0:
            found.append((neuron, torch.log(threshold).item()))
            neuron.log_threshold.fill_(found[-1][1])

    hooks = []
    for placed in model.sites().values():
        neuron = placed.neuron
        if isinstance(neuron, LIF) and neuron.config.learnable_threshold:
            neuron.log_threshold.fill_(math.log(neuron.config.threshold))
            share = rate or placed.site.initial_firing_rate
            hooks.append(neuron.register_forward_pre_hook(partial(calibrate, share=share)))
    was_training = model.training
    model.eval()
    model(torch.randint(model.config.vocab_size, (4, tokens), device=model.device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    for neuron, log_threshold in found:
        # where each process holds a part of the weights, the hooks have written into a passing copy
        neuron.log_threshold.fill_(log_threshold)
