"""The plan for many GPUs, worked by hand."""

from benchmarks.scale_plan import Saved, ddp, fsdp, parts_of
from spikegpt.config import ModelConfig
from spikegpt.model.network import SpikeGPT


def test_ddp_by_hand():
    # 10 million parameters are 40 MB, two buckets of 25 MiB; of four processes each sends 3/4 of it twice,
    # in 2 x 3 messages for each bucket
    plan = ddp(10_000_000, 4)
    assert plan.state_bytes == 160_000_000
    assert plan.sent_bytes == 60_000_000
    assert plan.messages == 12


def test_fsdp_by_hand():
    # a quarter of 160 MB, and the largest part of 4 MB twice; 3/4 of 40 MB three times; 7 parts, 3 rings of 3 messages
    plan = fsdp(10_000_000, parts=7, largest=1_000_000, processes=4)
    assert plan.state_bytes == 40_000_000 + 8_000_000
    assert plan.sent_bytes == 90_000_000
    assert plan.messages == 63


def test_one_process_sends_nothing():
    assert ddp(1000, 1).sent_bytes == fsdp(1000, 3, 500, 1).sent_bytes == 0
    assert ddp(1000, 1).state_bytes == fsdp(1000, 3, 500, 1).state_bytes == 16_000


def test_parts_are_those_of_the_model():
    config = ModelConfig(n_layer=3, n_embd=8, vocab_size=16)
    parts, largest = parts_of(config)
    block = SpikeGPT(config).blocks[1]
    assert (parts, largest) == (6, sum(parameter.numel() for parameter in block.parameters()))


def test_saved_bytes_by_hand():
    # 10 x 2 layers x 4 channels + 3 x 4 channels + 2 x 5 words
    config = ModelConfig(n_layer=2, n_embd=4, vocab_size=5)
    assert Saved(layer_channel=10, channel=3, word=2).per_token(config) == 80 + 12 + 10
