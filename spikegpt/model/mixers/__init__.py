"""The generations of RWKV by name, for `ModelConfig.mixer`; one more is a line here and a file beside this one."""

from .contract import Mixed, Mixer, NeuronFactory, Rows, Site, product_of, rate_scales, undecayed, weights_of
from .rwkv4 import ChannelMix, TimeMix
from .rwkv5 import ChannelMix5, TimeMix5
from .rwkv6 import ChannelMix6, TimeMix6
from .rwkv7 import ChannelMix7, TimeMix7

# name -> (first half of a block, second half); each is made from (ModelConfig, NeuronFactory)
MIXERS: dict[str, tuple[type[Mixer], type[Mixer]]] = {
    "rwkv4": (TimeMix, ChannelMix),
    "rwkv5": (TimeMix5, ChannelMix5),
    "rwkv6": (TimeMix6, ChannelMix6),
    "rwkv7": (TimeMix7, ChannelMix7),
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
