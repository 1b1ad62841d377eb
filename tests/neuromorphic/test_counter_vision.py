"""Blocks of vision models, in the shapes of torchvision and timm, beside products counted by hand."""

import pytest
import torch
from counting import count, reals
from torch import nn
from torch.nn import functional as F

from benchmarks.by_hand import count_by_hand


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class ConvNeXtBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.layer_scale = nn.Parameter(torch.full((8,), 1e-6))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.layer_scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ShiftedWindows(nn.Module):
    """Attention within windows of 2 x 2, rolled by 1, with learned biases of places and a mask of the seam."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.biases = nn.Linear(8, 24), nn.Linear(8, 8), nn.Parameter(torch.randn(9, 2))
        self.register_buffer("places", torch.randint(0, 9, (4, 4)))
        self.register_buffer("seam", torch.zeros(4, 4, 4).masked_fill(torch.rand(4, 4, 4) < 0.3, -100.0))

    def forward(self, x):
        B, C, H, W = x.shape
        x = x.roll((-1, -1), (2, 3)).reshape(B, C, H // 2, 2, W // 2, 2)
        windows = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, C)
        q, k, v = self.qkv(windows).reshape(-1, 4, 3, 2, C // 2).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (C // 2) ** -0.5
        scores = scores + self.biases[self.places.flatten()].view(4, 4, 2).permute(2, 0, 1)
        scores = (scores.view(B, -1, 2, 4, 4) + self.seam[:, None]).view(-1, 2, 4, 4)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, C))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(8, 8, 2, 2), nn.LayerNorm(8)
        self.tokens, self.channels, self.head = nn.Linear(4, 4), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm(x))).mean(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", [SqueezeExcitation, ConvNeXtBlock, ShiftedWindows, Mixer])
def test_a_block_of_vision_costs_what_is_counted_by_hand(block, training):
    torch.manual_seed(0)
    model, x = block().train(training), reals(2, 8, 4, 4)
    tally, products = count(model, x, strict=True), count_by_hand(model, x)
    total = tally.total()
    assert (total.dense_ops, total.effective_macs, total.effective_acs) == (products["real"], products["macs"], 0)
    assert products["macs"] > 0 and tally.tokens == {"prefill": 2}


def test_one_row_attention_adds_what_its_only_probability_multiplies():
    # a softmax of one number is 1, fused or not
    x = reals(2, 1, 1, 4)
    fused = nn.Module()
    fused.forward = lambda x: F.scaled_dot_product_attention(x, x, x)
    products, total = count_by_hand(fused, x), count(fused, x).total()
    assert (total.effective_macs, total.effective_acs) == (products["macs"], products["acs"]) == (2 * 4, 2 * 4)
