"""What generations.py says of a model, against numbers by hand."""

from benchmarks import generations
from spikegpt.config import ModelConfig


def test_a_dense_rwkv4_is_counted_by_hand():
    C, L, V = 16, 2, 256
    found = generations.examine(ModelConfig(n_layer=L, n_embd=C, ctx_len=16, spiking="none", vocab_size=V))
    # 2 V C + 13 C^2 L + C (11 L + 4) parameters; products are the head and 13 C^2 of each layer; 5 vectors of state
    assert found["parameters"] == 2 * V * C + 13 * C * C * L + C * (11 * L + 4)
    assert found["products"] == V * C + 13 * C * C * L
    assert found["state_bytes"] == 5 * C * L * 4


def test_a_matrix_per_head_is_most_of_the_state_of_a_later_generation():
    C, L, N = 64, 1, 32
    for mixer in ("rwkv5", "rwkv6", "rwkv7"):
        found = generations.examine(
            ModelConfig(n_layer=L, n_embd=C, ctx_len=16, spiking="none", mixer=mixer, head_size=N)
        )
        assert found["state_bytes"] == (C * N + 2 * C) * L * 4
