"""Generations of RWKV, and attention, by name, for `ModelConfig.mixer`; one more is a line here and a file beside."""

from .attention import Attention, FeedForward
from .contract import Mixed, Mixer, NeuronFactory, Rows, Site, product_of, rate_scales, undecayed, weights_of
from .rwkv4 import ChannelMix, TimeMix
from .rwkv7 import ChannelMix7, TimeMix7

# name -> (first half of a block, second half); each is made from (ModelConfig, NeuronFactory)
MIXERS: dict[str, tuple[type[Mixer], type[Mixer]]] = {
    "rwkv4": (TimeMix, ChannelMix),
    "rwkv7": (TimeMix7, ChannelMix7),
    "attention": (Attention, FeedForward),
}

__all__ = [
    "MIXERS",
    "Mixed",
    "Mixer",
    "NeuronFactory",
    "Rows",
    "Site",
    "product_of",
    "rate_scales",
    "undecayed",
    "weights_of",
]
