"""Thirty small models, whole but with random weights, and what a dense layer of their sizes multiplies, on paper.

Each takes one tensor, so that every counter can call it. `full` is worked out by hand from the sizes alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    x: Callable[[], Tensor]
    full: int
    """products of all layers as dense ones, with the padding of convolutions and all pairs of attention"""


def reals(*shape: int) -> Tensor:
    return torch.rand(*shape) + 0.125


def ids(*shape: int) -> Tensor:
    return torch.randint(1, 31, shape)


class Residual(nn.Module):
    def __init__(self, function: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.function, self.shortcut = function, shortcut or nn.Identity()

    def forward(self, x):
        return F.relu(self.function(x) + self.shortcut(x))


def normed(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def resnet_block(inputs: int, outputs: int, stride: int = 1) -> Residual:
    function = nn.Sequential(normed(inputs, outputs, 3, stride), nn.ReLU(), normed(outputs, outputs, 3))
    return Residual(function, normed(inputs, outputs, 1, stride) if stride > 1 else None)


def resnet18() -> nn.Sequential:
    """ResNet-18 with an eighth of its channels."""
    stages = [layer for n in (8, 16, 32) for layer in (resnet_block(n, 2 * n, 2), resnet_block(2 * n, 2 * n))]
    return nn.Sequential(
        *(normed(3, 8, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), resnet_block(8, 8), resnet_block(8, 8), *stages),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


# 32 x 32 after the first convolution, 16 x 16 after the pooling, then halved by every stage
RESNET18 = 2 * (3 * 49 * 8 * 32**2 + 4 * 9 * 8**2 * 16**2 + 64 * 10) + 2 * sum(
    (side**2) * (9 * n * 2 * n + 3 * 9 * (2 * n) ** 2 + n * 2 * n) for n, side in ((8, 8), (16, 4), (32, 2))
)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, padding=1)
        self.up, self.out = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        wide = F.relu(self.down(x))
        deep = F.interpolate(F.relu(self.deep(wide)), scale_factor=2, mode="bilinear")
        return self.out(torch.cat([wide, F.relu(self.up(deep))], dim=1))


class Last(nn.Module):
    """A recurrent layer and a product with its last output."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.layer(x)[0][:, -1])


class Einsum(nn.Module):
    """Attention and a layer, all by einsum."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(8, 2, 4)) for _ in range(3))
        self.out = nn.Parameter(torch.randn(2, 4, 8))

    def forward(self, x):
        q, k, v = (torch.einsum("btc,chd->bthd", x, weight) for weight in (self.q, self.k, self.v))
        probabilities = torch.einsum("bthd,bshd->bhts", q, k).softmax(-1)
        return torch.einsum("bthd,hdc->btc", torch.einsum("bhts,bshd->bthd", probabilities, v), self.out)


class CausalTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(31, 8), nn.Linear(8, 31, bias=False)
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, ids):
        x = self.embedding(ids)
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))


class Shared(nn.Module):
    """One layer under two parents, and a product with a bare parameter."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(8, 8)
        self.first, self.second = nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.ReLU())
        self.out = nn.Parameter(torch.randn(8, 5))

    def forward(self, x):
        return self.second(self.first(x)) @ self.out


def pruned() -> nn.Sequential:
    """Half of all weights are 0."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    for layer in (model[0], model[2]):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.5
    return model


class TernaryLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, (self.weight / self.weight.abs().mean()).round().clamp(-1, 1))


# transformers --------------------------------------------------------------------------------------------------------


class OfTransformers(nn.Module):
    """A model of transformers as a function of ids (B, T); padding is 0 for those that take a mask."""

    def __init__(self, name: str, is_masked: bool = False, **sizes):
        super().__init__()
        import transformers

        kind = getattr(transformers, name)
        self.model, self.is_masked = kind(kind.config_class(vocab_size=31, **sizes)), is_masked

    def forward(self, ids):
        options = {"attention_mask": (ids != 0).long()} if self.is_masked else {}
        return self.model(ids, **options)[0]


SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "num_key_value_heads": 1, "use_cache": False}
MIXTRAL = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2, "use_cache": False}
RWKV = {"hidden_size": 8, "attention_hidden_size": 8, "num_hidden_layers": 2, "use_cache": False}
GPT2 = {"n_layer": 2, "n_embd": 8, "n_head": 2, "use_cache": False}

# of 12 tokens: queries and outputs, keys and values of one head of two; scores and weighted values of 6 x 6 pairs
GROUPED_ATTENTION = 12 * (2 * 8 * 8 + 2 * 8 * 4) + 2 * 2 * 6 * 6 * 8
FULL_ATTENTION = 12 * 4 * 8 * 8 + 2 * 2 * 6 * 6 * 8


# spiking -------------------------------------------------------------------------------------------------------------


class SnnTorch(nn.Module):
    """Layers with snnTorch's neurons after all but the last, over (T, B, ...)."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        import snntorch

        self.layers = nn.ModuleList(layers)
        self.neurons = nn.ModuleList(snntorch.Leaky(beta=0.9, threshold=0.2) for _ in layers[1:])

    def forward(self, x):
        potentials = [neuron.reset_mem() for neuron in self.neurons]
        outputs = []
        for step in x:
            for place, neuron in enumerate(self.neurons):
                step, potentials[place] = neuron(self.layers[place](step), potentials[place])
            outputs.append(self.layers[-1](step))
        return torch.stack(outputs)


def spikingjelly_neuron() -> nn.Module:
    from spikingjelly.activation_based import neuron

    return neuron.LIFNode(step_mode="m", v_threshold=0.1)


class SpikingJelly(nn.Sequential):
    """Layers in multi-step mode over (T, B, ...), each but the last followed by SpikingJelly's neurons."""

    def __init__(self, *layers: nn.Module):
        from spikingjelly.activation_based import functional, layer

        self.start_anew = functional.reset_net
        each_step = [layer.SeqToANNContainer(part) for part in layers]
        super().__init__(*(part for step in each_step[:-1] for part in (step, spikingjelly_neuron())), each_step[-1])

    def forward(self, x):
        self.start_anew(self)
        return super().forward(x)


class Spikformer(nn.Module):
    """Attention of SpikingJelly's spikes, without softmax, over (T, B, N, C)."""

    def __init__(self):
        super().__init__()
        from spikingjelly.activation_based import functional

        self.start_anew = functional.reset_net
        self.projections = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.neurons, self.out = nn.ModuleList(spikingjelly_neuron() for _ in range(4)), nn.Linear(8, 8)

    def forward(self, x):
        self.start_anew(self)
        q, k, v = (neuron(layer(x)) for layer, neuron in zip(self.projections, self.neurons, strict=False))
        return self.out(self.neurons[3](0.5 * (q @ k.transpose(-1, -2) @ v)))


class NorseNeuron(nn.Module):
    """Norse's LIF, written out: a current and a potential, and a spike above the threshold."""

    def forward(self, drive, state):
        current, potential = state
        potential = potential + 0.1 * (current - potential)
        spike = (potential > 0.1).float()
        return spike, (0.8 * current + drive, (1 - spike) * potential)


class Norse(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 10), nn.Linear(10, 6), nn.Linear(6, 3)
        self.first_neuron, self.second_neuron = NorseNeuron(), NorseNeuron()

    def forward(self, x):
        first, second = ((x.new_zeros(x.shape[1], n), x.new_zeros(x.shape[1], n)) for n in (10, 6))
        outputs = []
        for step in x:
            hidden, first = self.first_neuron(self.first(step), first)
            spike, second = self.second_neuron(self.second(hidden), second)
            outputs.append(self.out(spike))
        return torch.stack(outputs)


def ours(spiking: str) -> nn.Module:
    from spikegpt.config.model import ModelConfig
    from spikegpt.model.initial import calibrate_thresholds
    from spikegpt.model.network import SpikeGPT

    model = SpikeGPT(ModelConfig(spiking=spiking, n_layer=2, n_embd=8, ctx_len=16, vocab_size=31))
    for parameter in model.parameters():
        # RWKV begins with matrices of zeros
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5)
    if spiking == "input":
        calibrate_thresholds(model, 0.2)
    return LogitsOf(model)


class LogitsOf(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).logits


CASES = {
    "MLP": Case(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), lambda: reals(4, 8), 4 * 192),
    "convolutions": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, dilation=2), nn.ReLU(), nn.Conv2d(4, 6, 3, 2)),
        lambda: reals(2, 2, 9, 9),
        2 * (2 * 9 * 4 * 7 * 7 + 4 * 9 * 6 * 3 * 3),
    ),
    "depthwise convolutions": Case(
        lambda: nn.Sequential(normed(6, 6, 3, 1, 6), nn.ReLU6(), normed(6, 10, 1), nn.Hardswish()),
        lambda: reals(2, 6, 8, 8),
        2 * 64 * (6 * 9 + 6 * 10),
    ),
    "grouped convolutions": Case(
        lambda: Residual(nn.Sequential(normed(8, 16, 1), nn.ReLU(), normed(16, 16, 3, 1, 4), normed(16, 8, 1))),
        lambda: reals(2, 8, 6, 6),
        2 * 36 * (8 * 16 + 9 * 16 * 4 + 16 * 8),
    ),
    "transposed convolutions": Case(
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2, 2)),
        lambda: reals(2, 4, 5, 5),
        2 * (4 * 9 * 6 * 25 + 6 * 4 * 2 * 100),
    ),
    "3d convolutions": Case(
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, (1, 2, 2), stride=2)),
        lambda: reals(2, 2, 4, 6, 6),
        2 * (2 * 27 * 4 * 4 * 36 + 4 * 4 * 3 * 2 * 9),
    ),
    "ResNet-18": Case(resnet18, lambda: reals(2, 3, 64, 64), RESNET18),
    "U-Net": Case(UNet, lambda: reals(2, 3, 8, 8), 2 * (27 * 4 * 64 + 9 * 4 * 8 * 16 + 9 * 8 * 4 * 64 + 8 * 2 * 64)),
    "LSTM": Case(
        lambda: Last(nn.LSTM(8, 6, num_layers=2, batch_first=True)),
        lambda: reals(2, 5, 8),
        2 * (5 * 4 * 6 * (8 + 6 + 6 + 6) + 6 * 3),
    ),
    "GRU": Case(
        lambda: Last(nn.GRU(8, 6, batch_first=True)), lambda: reals(2, 5, 8), 2 * (5 * 3 * 6 * (8 + 6) + 6 * 3)
    ),
    "encoder layers": Case(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        lambda: reals(2, 6, 8),
        2 * (FULL_ATTENTION + 12 * 2 * 8 * 16),
    ),
    "einsum": Case(Einsum, lambda: reals(2, 6, 8), FULL_ATTENTION),
    "causal attention": Case(CausalTransformer, lambda: ids(2, 6), FULL_ATTENTION + 12 * 8 * 31),
    "shared layer, bare weight": Case(Shared, lambda: reals(4, 8), 4 * (2 * 64 + 40)),
    "pruned MLP": Case(pruned, lambda: reals(4, 8), 4 * 192),
    "ternary weights": Case(
        lambda: nn.Sequential(TernaryLinear(8, 16), nn.ReLU(), TernaryLinear(16, 4)), lambda: reals(4, 8), 4 * 192
    ),
    "GPT-2": Case(
        lambda: OfTransformers("GPT2LMHeadModel", **GPT2),
        lambda: ids(2, 6),
        2 * (FULL_ATTENTION + 12 * 2 * 8 * 32) + 12 * 8 * 31,
    ),
    "Llama": Case(
        lambda: OfTransformers("LlamaForCausalLM", **LLAMA),
        lambda: ids(2, 6),
        2 * (GROUPED_ATTENTION + 12 * 3 * 8 * 16) + 12 * 8 * 31,
    ),
    "Mixtral": Case(
        lambda: OfTransformers("MixtralForCausalLM", **MIXTRAL),
        lambda: ids(2, 6),
        2 * (GROUPED_ATTENTION + 12 * (8 * 4 + 2 * 3 * 8 * 16)) + 12 * 8 * 31,
    ),
    "BERT with padding": Case(
        lambda: OfTransformers("BertModel", is_masked=True, **SIZES),
        lambda: ids(2, 6) * torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
        # the pooler reads one token of each text
        2 * (FULL_ATTENTION + 12 * 2 * 8 * 16) + 2 * 8 * 8,
    ),
    "Mamba": Case(
        lambda: OfTransformers("MambaForCausalLM", **MAMBA),
        lambda: ids(2, 6),
        # into 2 x 16, depthwise over 4 of 6 + 3 positions, to the step and two vectors of 4, the step to 16, the
        # output of 4 states for each of 16 channels, and out
        2 * 12 * (8 * 32 + 16 * (2 + 2 * 4) + 2 * 16 + 16 * 4 + 16 * 8) + 2 * 2 * 16 * 4 * 9 + 12 * 8 * 31,
    ),
    "RWKV-4": Case(
        lambda: OfTransformers("RwkvForCausalLM", **RWKV), lambda: ids(2, 6), 12 * (2 * 13 * 8 * 8 + 8 * 31)
    ),
    "snnTorch, layers": Case(
        lambda: SnnTorch(nn.Linear(8, 10), nn.Linear(10, 6), nn.Linear(6, 3)),
        lambda: reals(6, 4, 8),
        24 * (80 + 60 + 18),
    ),
    "snnTorch, convolutions": Case(
        lambda: SnnTorch(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(36, 5))),
            nn.Linear(5, 3),
        ),
        lambda: (reals(6, 2, 2, 5, 5) > 0.7).float(),
        12 * (2 * 9 * 4 * 25 + 4 * 9 * 4 * 9 + 36 * 5 + 5 * 3),
    ),
    "SpikingJelly, layers": Case(
        lambda: SpikingJelly(nn.Linear(8, 10), nn.Linear(10, 6), nn.Linear(6, 3)),
        lambda: reals(6, 4, 8),
        24 * (80 + 60 + 18),
    ),
    "SpikingJelly, convolutions": Case(
        lambda: SpikingJelly(normed(2, 4, 3), normed(4, 4, 3, 2), nn.Sequential(nn.Flatten(), nn.Linear(36, 5))),
        lambda: reals(6, 2, 2, 6, 6),
        12 * (2 * 9 * 4 * 36 + 4 * 9 * 4 * 9 + 36 * 5),
    ),
    "Spikformer's attention": Case(Spikformer, lambda: reals(4, 2, 6, 8), 48 * 4 * 64 + 8 * 2 * 6 * 6 * 8),
    "Norse's neurons": Case(Norse, lambda: reals(6, 4, 8), 24 * (80 + 60 + 18)),
    # 13 d^2 in each layer and d V in the head
    "spike-driven SpikeGPT": Case(lambda: ours("input"), lambda: ids(2, 6), 12 * (2 * 13 * 8 * 8 + 8 * 31)),
    "published SpikeGPT": Case(lambda: ours("output"), lambda: ids(2, 6), 12 * (2 * 13 * 8 * 8 + 8 * 31)),
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model in evaluation mode and its input, the same at every call."""
    torch.manual_seed(0)
    case = CASES[name]
    return case.make().eval(), case.x()
