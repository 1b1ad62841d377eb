"""Attention with rotary positions, and the half of a block behind it: the dense baseline with a key-value cache.

All else is as in every other model here, and a layer has RWKV-4's 13 C^2 weights: 4 C^2 here, 9 C^2 in a feed-forward
half whose hidden layer is 4.5 C wide. A token sees itself and the ctx_len - 1 tokens before it; more are not kept, so a
text may be of any length, and no distance is one that was not trained.
Source: arXiv 1706.03762; grouped key and value heads: arXiv 2305.13245.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import ModelConfig
from ...kernels import squared_relu
from ..rope import frequencies, rotate, turns
from .contract import Mixed, Mixer, NeuronFactory


class AttentionState(NamedTuple):
    """`keys`, rotated, and `values` (B, G, n, d) of the last n tokens; `read` (B, 1): how many tokens were read.

    Where a text has read fewer than n, its first rows are no tokens: shorter texts of a batch are filled up in front.
    """

    keys: Tensor | None
    values: Tensor | None
    read: Tensor | None
    neurons: dict[str, Any] | None


class FeedForwardState(NamedTuple):
    """Nothing is carried."""

    neurons: dict[str, Any] | None


class Attention(Mixer):
    """output(softmax(query key^T / sqrt(d)) value) of H heads; H / G of them read the same keys and values."""

    last_product = "output"
    state_grows = True

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        C, self.n_head, self.n_kv_head = config.n_embd, config.n_head, config.kv_heads
        self.window = config.ctx_len
        head_size = C // self.n_head
        self.query, self.output = (nn.Linear(C, C, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(C, self.n_kv_head * head_size, bias=False) for _ in range(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, T, d), keys and values (B, G, T, d) of x (B, T, C), none of them rotated."""
        query, key, value = (
            projection(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection, heads in (
                (self.query, self.n_head),
                (self.key, self.n_kv_head),
                (self.value, self.n_kv_head),
            )
        )
        return query, key, value

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) (B, 1, T, pairs) of positions (B, T), the same for all heads."""
        return turns(positions.unsqueeze(1), frequencies(self.query.in_features // self.n_head), dtype)

    def turned(self, query: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return queries (B, H, T, d) turned by their positions."""
        return rotate(query, cos, sin)

    def expanded(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, G, n, d) of what is cached of them."""
        return keys, values

    def forward(self, x: Tensor, state: AttentionState | None) -> Mixed:
        keys, values, read, _ = state or AttentionState(None, None, None, None)
        T = x.shape[1]
        query, key, value = self.project(x)
        now = torch.arange(T, device=x.device).unsqueeze(0)
        positions = now if read is None else read + now
        cos, sin = self.angles(positions, torch.promote_types(x.dtype, torch.float32))
        query, key = self.turned(query, cos, sin), rotate(key, cos, sin)
        if keys is not None and values is not None:
            key, value = torch.cat([keys.to(key.dtype), key], dim=2), torch.cat([values.to(value.dtype), value], dim=2)
        y = self.output(self._attend(query, *self.expanded(key, value), read).transpose(1, 2).flatten(2))
        first = max(key.shape[2] - self.window + 1, 0)
        read = x.new_full((len(x), 1), T, dtype=torch.long) if read is None else read + T
        return Mixed(y, AttentionState(key[:, :, first:], value[:, :, first:], read, None), {})

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, read: Tensor | None) -> Tensor:
        """Mean values (B, H, T, d) of the last T of the n rows of key and value, each of its own window."""
        (T, n), W = (query.shape[2], key.shape[2]), self.window
        is_grouped = key.shape[1] < query.shape[1]
        cached = n - T
        # texts of one length have no rows that are no tokens
        padding = None if read is None or len(read) == 1 or int(read.min()) >= cached else (cached - read).clamp(min=0)
        parts = []
        # a window of queries after the other: none of them sees more than two windows of keys
        for start in range(0, T, W):
            last = min(start + W, T)
            first_row, last_row = max(cached + start - W + 1, 0), cached + last
            rows, own = torch.arange(first_row, last_row), torch.arange(cached + start, last_row).unsqueeze(1)
            is_causal = padding is None and first_row == cached + start
            mask = None
            if padding is not None or not (is_causal or last - start == 1):
                mask = ((rows <= own) & (rows > own - W)).to(query.device)
                if padding is not None:
                    mask = mask & (rows.to(query.device) >= padding)[:, None, None, :]
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:last],
                    key[:, :, first_row:last_row],
                    value[:, :, first_row:last_row],
                    attn_mask=mask,
                    is_causal=is_causal,
                    enable_gqa=is_grouped,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Scores of unit variance from a normalised stream; nothing is added to it at first, as in RWKV."""
        for matrix in (self.query, self.key, self.value):
            nn.init.normal_(matrix.weight, std=1 / math.sqrt(matrix.in_features))
        nn.init.zeros_(self.output.weight)

    @staticmethod
    def op_cost(args: tuple, kwargs: dict, output: Mixed) -> dict[str, int]:
        """What is cached is read once per call, and what is new is written."""
        x, state, after = args[0], args[1], output.state
        cached = 0 if state is None or state.keys is None else state.keys.numel() + state.values.numel()
        kept = after.keys[0].numel() + after.values[0].numel()
        new = (after.keys[:, :, :1].numel() + after.values[:, :, :1].numel()) * x.shape[1]
        return {"state_elements": kept, "state_reads": cached, "state_writes": new}


class FeedForward(Mixer):
    """value(relu(key)^2), of the token alone."""

    last_product = "value"

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        self.key = nn.Linear(config.n_embd, config.n_ffn, bias=False)
        self.value = nn.Linear(config.n_ffn, config.n_embd, bias=False)

    def forward(self, x: Tensor, state: FeedForwardState | None) -> Mixed:
        return Mixed(self.value(squared_relu(self.key(x))), FeedForwardState(None), {})

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        nn.init.normal_(self.key.weight, std=1 / math.sqrt(self.key.in_features))
        nn.init.zeros_(self.value.weight)
