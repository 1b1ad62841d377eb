"""One public door per operation; what lies behind it is chosen by `backends`, defined by the `reference` beside it."""

from .commitment.door import commitment_error
from .event_matvec.door import event_matvec
from .event_wkv.door import EventWKVState, event_wkv
from .event_wkv7.door import EventWKV7State, event_wkv7
from .fused_lif.door import gated_lif, shifted_lif, squared_relu_lif
from .integer_lif.door import integer_lif
from .lif.door import lif
from .pointwise.door import dropout, firing_rate, gate, rescale_columns, squared_relu
from .token_shift.door import token_shift
from .wkv.door import WKVState, wkv
from .wkv6.door import wkv6
from .wkv7.door import wkv7

__all__ = [
    "EventWKV7State", "EventWKVState", "WKVState", "commitment_error", "dropout", "event_matvec", "event_wkv",
    "event_wkv7", "firing_rate", "gate", "gated_lif", "integer_lif", "lif", "rescale_columns", "shifted_lif",
    "squared_relu", "squared_relu_lif", "token_shift", "wkv", "wkv6", "wkv7",
]  # fmt: skip
