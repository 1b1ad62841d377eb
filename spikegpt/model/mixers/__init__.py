"""Generations of RWKV, and attention, by name, for `ModelConfig.mixer`; one more is a line here and a file beside."""

from collections.abc import Callable

from ...config import ModelConfig
from .attention import FeedForward
from .contract import Mixed, Mixer, NeuronFactory, Rows, Site, product_of, rate_scales, undecayed, weights_of
from .elite import attention_half
from .rwkv4 import ChannelMix, TimeMix
from .rwkv5 import ChannelMix5, TimeMix5
from .rwkv6 import ChannelMix6, TimeMix6
from .rwkv7 import ChannelMix7, TimeMix7

# makes one: a class, or a function that chooses it
Half = Callable[[ModelConfig, NeuronFactory], Mixer]

# name -> (first half of a block, second half); each is made from (ModelConfig, NeuronFactory)
MIXERS: dict[str, tuple[Half, Half]] = {
    "rwkv4": (TimeMix, ChannelMix),
    "rwkv5": (TimeMix5, ChannelMix5),
    "rwkv6": (TimeMix6, ChannelMix6),
    "rwkv7": (TimeMix7, ChannelMix7),
    "attention": (attention_half, FeedForward),
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
