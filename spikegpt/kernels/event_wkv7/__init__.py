"""RWKV-7's WKV of receptance and key spikes: the matrices are read and edited at their events alone."""
