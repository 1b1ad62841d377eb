"""The whole network: TimeMix, ChannelMix, Block, SpikeGPT. Dense RWKV-4 is the same class with `spiking="none"`.

Parameter names and shapes are those of the official checkpoints. One neuron step is one token.
Sources: github.com/BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py; github.com/ridgerchu/SpikeGPT, src/model.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from .config import ModelConfig
from .kernels import WKVState, wkv
from .neuron import LIF, heaviside

# makes the neurons of one half block from n_embd; returns a module like `neuron.LIF`
NeuronFactory = Callable[[int], nn.Module]


class LayerState(NamedTuple):
    """What one block carries from token to token; each tensor (B, C). Neuron states are None in the dense twin."""

    time_mix_shift: Tensor
    wkv: WKVState
    time_mix_neuron: Any
    channel_mix_shift: Tensor
    channel_mix_neuron: Any


State = tuple[LayerState, ...]


class ModelOutput(NamedTuple):
    logits: Tensor
    state: State
    spikes: dict[str, Tensor]


def detach_state(state: State) -> State:
    """Return the state without its history of gradients, for truncated backpropagation."""
    return tree_map(lambda part: part.detach() if isinstance(part, Tensor) else part, state)


def join_states(states: Sequence[State]) -> State:
    """Return the states of several texts as the state of one batch."""
    return tree_map(lambda first, *rest: torch.cat([first, *rest]) if isinstance(first, Tensor) else first, *states)


def shift_tokens(x: Tensor, previous: Tensor | None) -> Tensor:
    """Return x (B, T, C) moved one token later; the first token sees `previous` (B, C), or zeros."""
    first = x.new_zeros(x.shape[0], 1, x.shape[2]) if previous is None else previous.to(x.dtype).unsqueeze(1)
    return torch.cat([first, x[:, :-1]], dim=1)


def token_shift_cost(args: tuple, kwargs: dict, output: Any) -> dict[str, int]:
    """What a token shift of x = args[0] (B, T, C) carries: for every token the one before is read, and itself is kept."""
    elements = args[0].numel()
    return {"state_elements": args[0].shape[-1], "state_reads": elements, "state_writes": elements}


class TimeMix(nn.Module):
    """RWKV-4 time mixing: output(sigmoid(receptance) * wkv(key, value)), each projection of a token-shift mix."""

    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig):
        super().__init__()
        C = config.n_embd
        self.time_decay = nn.Parameter(torch.empty(C))
        self.time_first = nn.Parameter(torch.empty(C))
        for name in ("time_mix_k", "time_mix_v", "time_mix_r"):
            setattr(self, name, nn.Parameter(torch.empty(1, 1, C)))
        for name in ("key", "value", "receptance", "output"):
            setattr(self, name, nn.Linear(C, C, bias=False))

    def forward(self, x: Tensor, shift: Tensor | None, state: WKVState | None) -> tuple[Tensor, Tensor, WKVState]:
        shifted = shift_tokens(x, shift)
        key = self.key(torch.lerp(shifted, x, self.time_mix_k))
        value = self.value(torch.lerp(shifted, x, self.time_mix_v))
        receptance = self.receptance(torch.lerp(shifted, x, self.time_mix_r))
        mean, state = wkv(self.time_decay, self.time_first, key, value, state)
        return self.output(torch.sigmoid(receptance) * mean), x[:, -1], state


class ChannelMix(nn.Module):
    """RWKV-4 channel mixing: sigmoid(receptance) * value(relu(key)^2), each projection of a token-shift mix."""

    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig):
        super().__init__()
        C = config.n_embd
        self.time_mix_k = nn.Parameter(torch.empty(1, 1, C))
        self.time_mix_r = nn.Parameter(torch.empty(1, 1, C))
        self.key = nn.Linear(C, config.n_ffn, bias=False)
        self.value = nn.Linear(config.n_ffn, C, bias=False)
        self.receptance = nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        shifted = shift_tokens(x, shift)
        key = self.key(torch.lerp(shifted, x, self.time_mix_k))
        receptance = self.receptance(torch.lerp(shifted, x, self.time_mix_r))
        return torch.sigmoid(receptance) * self.value(torch.relu(key).square()), x[:, -1]


class Block(nn.Module):
    """x + neuron(time_mix(ln1(x))), then x + neuron(channel_mix(ln2(x))); without neurons in the dense twin."""

    def __init__(self, config: ModelConfig, layer: int, neuron: NeuronFactory):
        super().__init__()
        self.emits_spikes = config.spiking == "output"
        if layer == 0:
            self.ln0 = nn.LayerNorm(config.n_embd)
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.att = TimeMix(config)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.ffn = ChannelMix(config)
        if self.emits_spikes:
            self.time_mix_neuron = neuron(config.n_embd)
            self.channel_mix_neuron = neuron(config.n_embd)

    def forward(self, x: Tensor, state: LayerState | None) -> tuple[Tensor, LayerState, tuple[Tensor, ...]]:
        """Return (x, state, the spikes of both halves or nothing)."""
        before = state or LayerState(None, None, None, None, None)
        mixed, time_mix_shift, wkv_state = self.att(self.ln1(x), before.time_mix_shift, before.wkv)
        time_mix_neuron = channel_mix_neuron = None
        spikes = ()
        if self.emits_spikes:
            mixed, time_mix_neuron = self.time_mix_neuron(mixed, before.time_mix_neuron)
            spikes = (mixed,)
        x = x + mixed
        mixed, channel_mix_shift = self.ffn(self.ln2(x), before.channel_mix_shift)
        if self.emits_spikes:
            mixed, channel_mix_neuron = self.channel_mix_neuron(mixed, before.channel_mix_neuron)
            spikes = (*spikes, mixed)
        return x + mixed, LayerState(time_mix_shift, wkv_state, time_mix_neuron, channel_mix_shift, channel_mix_neuron), spikes


class SpikeGPT(nn.Module):
    """A language model of RWKV-4 blocks whose outputs are spikes, or its dense twin.

    Args:
        config: sizes and `spiking`; the configuration of our own neurons.
        neuron: makes other neurons than our LIF, e.g. `lambda channels: SpikingJellyNeuron(...)`.
        init: fill every parameter with RWKV's initialisation; False leaves them for a checkpoint to fill.
    """

    def __init__(self, config: ModelConfig, neuron: NeuronFactory | None = None, init: bool = True):
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.n_embd)
        make_neuron = neuron or (lambda channels: LIF(channels, config.neuron))
        self.blocks = nn.ModuleList(Block(config, layer, make_neuron) for layer in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if init:
            initialise(self)

    def forward(self, ids: Tensor, state: State | None = None, *, last_only: bool = False) -> ModelOutput:
        """Return the logits of the next token at every position, the state after the last, and the spikes.

        Args:
            ids: (B, T) whole numbers in [0, vocab_size).
            state: carried in from the tokens before; None at the start of a text.
            last_only: compute the logits of the last position only, (B, 1, vocab_size).

        Returns:
            logits (B, T, vocab_size); state; spikes: name of the emitting module -> (B, T, C), in order, empty if dense.

        Raises:
            ValueError: ids are not (B, T) whole numbers or lie outside the vocabulary; the state is another model's.
        """
        self._check_ids(ids)
        if state is not None and len(state) != len(self.blocks):
            raise ValueError(f"the state has {len(state)} layers, the model {len(self.blocks)}; it comes from another model")
        x = self.emb(ids)
        spikes = {}
        if self.config.spiking == "output":
            x = spikes["emb"] = heaviside(x, "atan", 2.0)
        x = self.blocks[0].ln0(x)
        new_state = []
        for layer, block in enumerate(self.blocks):
            x, layer_state, emitted = block(x, state[layer] if state is not None else None)
            x = F.dropout(x, self.config.dropout, self.training)
            new_state.append(layer_state)
            spikes.update(zip((f"blocks.{layer}.time_mix_neuron", f"blocks.{layer}.channel_mix_neuron"), emitted, strict=False))
        if last_only:
            x = x[:, -1:]
        return ModelOutput(self.head(self.ln_out(x)), tuple(new_state), spikes)

    def _check_ids(self, ids: Tensor) -> None:
        if ids.dim() != 2 or 0 in ids.shape or ids.is_floating_point():
            raise ValueError(f"ids must be (B, T) whole numbers with no empty side, got {ids.dtype} {tuple(ids.shape)}")
        if ids.is_cuda or ids.is_meta or torch.compiler.is_compiling():
            # looking at the values would make the GPU wait; the embedding's own check reports there
            return
        lowest, highest = (int(value) for value in ids.aminmax())
        if lowest < 0 or highest >= self.config.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"token id {wrong} is outside the vocabulary [0, {self.config.vocab_size}); is this the model's own tokenizer?")

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def l2wrap(logits: Tensor, strength: float) -> Tensor:
    """Return RWKV's L2Wrap as a loss term, strength/2 * mean(max logit squared): its gradient is the published one."""
    return strength / 2 * logits.float().amax(dim=-1).square().mean()


@torch.no_grad()
def initialise(model: SpikeGPT) -> None:
    """Fill every parameter of `model` with RWKV's initialisation, drawn from torch's default generator.

    Source: RWKV-v4neo `__init__` and `generate_init_weight`: orthogonal or zero matrices, zigzag time_first, power-law
    time_decay. The published SpikeGPT script skips it by accident and trains from torch's defaults.
    """
    config = model.config
    C, L = config.n_embd, config.n_layer
    channel = torch.arange(C, dtype=torch.float64)
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    nn.init.uniform_(model.emb.weight, -1e-4, 1e-4)
    nn.init.orthogonal_(model.head.weight, gain=0.5 * math.sqrt(max(config.vocab_size / C, 1)))
    for layer, block in enumerate(model.blocks):
        depth = layer / max(L - 1, 1)
        ramp = (channel / C) ** (1 - layer / L)
        att, ffn = block.att, block.ffn
        att.time_decay.copy_(-5 + 8 * (channel / max(C - 1, 1)) ** (0.7 + 1.3 * depth))
        att.time_first.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        att.time_mix_k.copy_(ramp.view(1, 1, C))
        att.time_mix_v.copy_((ramp + 0.3 * depth).view(1, 1, C))
        att.time_mix_r.copy_(ramp.sqrt().view(1, 1, C))
        ffn.time_mix_k.copy_(ramp.view(1, 1, C))
        ffn.time_mix_r.copy_(ramp.view(1, 1, C))
        for matrix in (att.key, att.receptance, att.output, ffn.value, ffn.receptance):
            nn.init.zeros_(matrix.weight)
        nn.init.orthogonal_(att.value.weight, gain=1.0)
        nn.init.orthogonal_(ffn.key.weight, gain=2.0)
