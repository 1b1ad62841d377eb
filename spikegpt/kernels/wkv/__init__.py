"""RWKV-4's WKV."""
