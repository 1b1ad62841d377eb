"""RWKV's token shift: each token is mixed with the one before it."""
