"""One public door per operation; what lies behind it is chosen by `backends`, defined by the `reference` beside it."""

from .event_matvec.door import event_matvec
from .event_wkv.door import EventWKVState, event_wkv
from .integer_lif.door import integer_lif
from .lif.door import lif
from .wkv.door import WKVState, wkv

__all__ = ["EventWKVState", "WKVState", "event_matvec", "event_wkv", "integer_lif", "lif", "wkv"]
