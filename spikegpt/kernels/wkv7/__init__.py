"""RWKV-7's WKV: a matrix-valued state that is edited by a delta rule."""
