"""One public door per operation; what lies behind it is chosen by `backends`, defined by `reference`."""

from .lif_door import lif
from .wkv_door import WKVState, wkv

__all__ = ["WKVState", "lif", "wkv"]
