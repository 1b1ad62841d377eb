"""The WKV of RWKV-5 and -6: a matrix-valued state whose channels decay, each by itself."""
