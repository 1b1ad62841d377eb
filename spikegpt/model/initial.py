"""What a model begins with: RWKV's initialisation, and thresholds at which a given share of the neurons fires."""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..neuron.lif import LIF
from ..neuron.thresholds import threshold_of_rate

if TYPE_CHECKING:
    from .network import SpikeGPT


@torch.no_grad()
def initialise(model: "SpikeGPT") -> None:
    """Fill `model` from torch's default generator: embedding and head here, halves of blocks as they do.

    Source: RWKV-v4neo `generate_init_weight`. The published SpikeGPT script skips it by accident and trains from
    torch's defaults.
    """
    config = model.config
    C = config.n_embd
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    nn.init.uniform_(model.emb.weight, -1e-4, 1e-4)
    nn.init.orthogonal_(model.head.weight, gain=0.5 * math.sqrt(max(config.vocab_size / C, 1)))
    for layer, block in enumerate(model.blocks):
        block.att.initialise(layer, config.n_layer)
        block.ffn.initialise(layer, config.n_layer)
    if config.spiking == "input":
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

    def calibrate(neuron: LIF, inputs: tuple[Tensor, ...], share: float) -> None:
        threshold = threshold_of_rate(inputs[0].float(), share, neuron.config.signed)
        # a layer that nothing reaches keeps its threshold
        if threshold > 0:
            neuron.log_threshold.fill_(torch.log(threshold))

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
