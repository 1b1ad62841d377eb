"""RWKV-7's two halves of a block, dense. Parameter names and shapes are those of the official checkpoints.

Source: github.com/BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py and RWKV-v7/rwkv_v7_demo.py.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import ModelConfig
from ...kernels import squared_relu, wkv7
from .contract import Mixed, Mixer, NeuronFactory, mix_tokens, token_shift_cost
from .rwkv4 import ChannelMixState

# pairs of matrices of few inner channels, whose product is added to a parameter -> inner channels / sqrt(n_embd)
PAIRS = {"w": 2.5, "a": 2.5, "v": 1.7, "g": 5.0}
# times the square of 8, whatever the size of a head is
NORM_EPS = 64e-5


class TimeMix7State(NamedTuple):
    """`shift` (B, C): the token before; `wkv` (B, H, N, N): the matrices of the WKV; what neurons carry, which is none
    yet."""

    shift: Tensor | None
    wkv: Tensor | None
    neurons: dict[str, Any] | None


class TimeMix7(Mixer):
    """output((norm(wkv) + bonus) * gate): decay, value, rate of learning and gate are functions of the token."""

    last_product = "output"
    takes_first = True
    unread_in_first = frozenset(("v0", "v1", "v2"))
    # source: RWKV-v7/train_temp/src/model.py, configure_optimizers
    rate_scales = {"w0": 2.0}  # noqa: RUF012 (the base class declares it)
    undecayed = frozenset(("r_k", *(f"{pair}{side}" for pair in PAIRS for side in (1, 2))))
    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        C, N = config.n_embd, config.head_size
        self.head_size = N
        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = (_per_channel(C) for _ in range(6))
        self.w0, self.a0, self.v0, self.k_k, self.k_a = (_per_channel(C) for _ in range(5))
        w, a, v, g = config.lora_ranks or published_ranks(C)
        self.w1, self.a1, self.v1, self.g1 = (nn.Parameter(torch.empty(C, rank)) for rank in (w, a, v, g))
        self.w2, self.a2, self.v2, self.g2 = (nn.Parameter(torch.empty(rank, C)) for rank in (w, a, v, g))
        self.r_k = nn.Parameter(torch.empty(C // N, N))
        self.receptance, self.key, self.value, self.output = (nn.Linear(C, C, bias=False) for _ in range(4))
        self.ln_x = nn.GroupNorm(C // N, C, eps=NORM_EPS)

    def forward(self, x: Tensor, state: TimeMix7State | None, first: Tensor | None = None) -> Mixed:
        """Return what is added to the stream; `first` are the values (B, T, C) of the first block, None in it."""
        shift, matrices, _ = state or TimeMix7State(None, None, None)
        shares = (1 - share for share in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g))
        for_r, for_w, for_k, for_v, for_a, for_g = mix_tokens(x, shift, *shares)
        r, k, v = self.receptance(for_r), self.key(for_k), self.value(for_v)
        log_decay = -math.exp(-0.5) * torch.sigmoid(self.w0 + torch.tanh(for_w @ self.w1) @ self.w2)
        if first is not None:
            v = v + (first - v) * torch.sigmoid(self.v0 + for_v @ self.v1 @ self.v2)
        rate = torch.sigmoid(self.a0 + for_a @ self.a1 @ self.a2)
        gate = torch.sigmoid(for_g @ self.g1) @ self.g2
        removed = F.normalize(self._heads(k * self.k_k), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)
        inputs = self._heads(k), self._heads(v), -removed, removed * self._heads(rate)
        # under autocast the products of matrices are in its precision, what parameters are added to is not
        k_heads, v_heads, a, b = (part.to(r.dtype) for part in inputs)
        y, matrices = wkv7(self._heads(r), self._heads(log_decay), k_heads, v_heads, a, b, matrices)
        bonus = (self._heads(r * k) * self.r_k).sum(dim=-1, keepdim=True) * self._heads(v)
        y = self.ln_x(y.flatten(0, 1).flatten(1)).view_as(x) + bonus.flatten(2)
        return Mixed(self.output(y * gate), TimeMix7State(x[:, -1], matrices, None), {}, v if first is None else first)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size))

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: RWKV-v7/train_temp/src/model.py, `__init__` and `generate_init_weight`."""
        channel = torch.arange(self.key.in_features, dtype=torch.float64)
        C, N = len(channel), self.head_size
        depth, left, share = layer / max(n_layer - 1, 1), 1 - layer / n_layer, channel / C
        along = channel / max(C - 1, 1)
        middle = max((N - 1) / 2, 0.5)
        zigzag = (channel % N - (N - 1) / 2) / middle
        zigzag = zigzag * zigzag.abs()
        for parameter, power in zip(
            (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g), (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True
        ):
            parameter.copy_(1 - share ** (power * left))
        self.w0.copy_(-6 + 6 * along ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag)
        self.a0.copy_(-0.19 + 0.3 * zigzag + 0.4 * (along - 0.5))
        self.v0.copy_(0.73 - 0.4 * (along - 0.5))
        self.k_k.copy_(0.71 - 0.1 * (along - 0.5))
        self.k_a.fill_(1.02)
        self.r_k.fill_(-0.04)
        self.ln_x.weight.fill_(((layer + 1) / n_layer) ** 0.7)
        nn.init.zeros_(self.ln_x.bias)
        for pair in PAIRS:
            nn.init.zeros_(self.get_parameter(f"{pair}1"))
            nn.init.orthogonal_(self.get_parameter(f"{pair}2"), gain=0.1)
        nn.init.orthogonal_(self.receptance.weight)
        nn.init.orthogonal_(self.key.weight, gain=0.1)
        nn.init.orthogonal_(self.value.weight)
        nn.init.zeros_(self.output.weight)


class ChannelMix7(Mixer):
    """value(relu(key)^2), the key of a token-shift mix."""

    last_product = "value"
    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        self.x_k = nn.Parameter(torch.empty(1, 1, config.n_embd))
        self.key = nn.Linear(config.n_embd, config.n_ffn, bias=False)
        self.value = nn.Linear(config.n_ffn, config.n_embd, bias=False)

    def forward(self, x: Tensor, state: ChannelMixState | None) -> Mixed:
        (mixed,) = mix_tokens(x, state.shift if state else None, 1 - self.x_k)
        return Mixed(self.value(squared_relu(self.key(mixed))), ChannelMixState(x[:, -1], None), {})

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: as of `TimeMix7.initialise`."""
        share = torch.arange(self.key.in_features, dtype=torch.float64) / self.key.in_features
        self.x_k.copy_(1 - share ** ((1 - layer / n_layer) ** 4))
        # a gain of 1 for sides of any ratio, as published
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)


def _per_channel(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, 1, channels))


def published_ranks(n_embd: int) -> tuple[int, ...]:
    """Return the inner channels of the pairs w, a, v, g. Source: RWKV-v7/train_temp/src/model.py."""
    return tuple(max(32, 32 * round(factor * math.sqrt(n_embd) / 32)) for factor in PAIRS.values())
