"""The whole network: TimeMix, ChannelMix, Block, SpikeGPT. One class: spike-driven, as published, and dense RWKV-4.

Parameter names and shapes are those of the official checkpoints. One neuron step is one token.
Sources: github.com/BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py; github.com/ridgerchu/SpikeGPT, src/model.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from ..config import ModelConfig
from ..kernels import WKVState, event_wkv, wkv
from ..neuron.lif import LIF, heaviside

# makes the neurons of one layer from n_embd; returns a module like `neuron.LIF`
NeuronFactory = Callable[[int], nn.Module]

# share of the neurons that fires before the first step in the layers of the input block, where thresholds may learn.
# What the blocks add to the residual stream starts almost silent: spikes of untrained neurons there are noise that
# training has to undo, by making all neurons fire less. Measured: inputs at 0.3 or all layers at 0.25 end 0.03 to 0.1
# bits worse after 600 steps
INITIAL_FIRING_RATES = {"output_neuron": 0.05, "ffn.value_neuron": 0.10}
OTHER_INITIAL_FIRING_RATE = 0.45


class LayerState(NamedTuple):
    """What one block carries from token to token; each tensor (B, C).

    A neuron state is what the block's neurons carry: None in the dense twin, the potential in the published block, and
    in the spike-driven block site -> potential, or None where the neuron is memoryless.
    """

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


def select_texts(state: State, texts: Sequence[int]) -> State:
    """Return the state of the batch that consists of these texts (places in the batch of `state`), in this order."""
    return tree_map(lambda part: part[list(texts)] if isinstance(part, Tensor) else part, state)


def shift_tokens(x: Tensor, previous: Tensor | None) -> Tensor:
    """Return x (B, T, C) moved one token later; the first token sees `previous` (B, C), or zeros."""
    first = x.new_zeros(x.shape[0], 1, x.shape[2]) if previous is None else previous.to(x.dtype).unsqueeze(1)
    return torch.cat([first, x[:, :-1]], dim=1)


def token_shift_cost(args: tuple, kwargs: dict, output: Any) -> dict[str, int]:
    """What a token shift of x = args[0] (B, T, C) carries: for every token the one before is read, and itself is
    kept."""
    elements = args[0].numel()
    return {"state_elements": args[0].shape[-1], "state_reads": elements, "state_writes": elements}


class _Mix(nn.Module):
    """What both halves of a block share: neurons before their matrix products, which only the spike-driven block
    has."""

    op_cost = staticmethod(token_shift_cost)

    def _fire(
        self,
        site: str,
        current: Tensor,
        before: dict[str, Any] | None,
        after: dict[str, Any],
        spikes: dict[str, Tensor],
    ) -> Tensor:
        """Return the spikes of the neurons at `site`, and note them and their state; without neurons, the current
        itself."""
        neuron = getattr(self, site, None)
        if neuron is None:
            return current
        spikes[site], after[site] = neuron(current, before[site] if before else None)
        return spikes[site]


class TimeMix(_Mix):
    """RWKV-4 time mixing: output(sigmoid(receptance) * wkv(key, value)), each projection of a token-shift mix."""

    def __init__(self, config: ModelConfig, neuron: NeuronFactory):
        super().__init__()
        C = config.n_embd
        self.time_decay = nn.Parameter(torch.empty(C))
        self.time_first = nn.Parameter(torch.empty(C))
        for name in ("time_mix_k", "time_mix_v", "time_mix_r"):
            setattr(self, name, nn.Parameter(torch.empty(1, 1, C)))
        for name in ("key", "value", "receptance", "output"):
            setattr(self, name, nn.Linear(C, C, bias=False))
        self.has_events = config.spiking == "input"
        if self.has_events:
            for site in ("key_neuron", "value_neuron", "receptance_neuron", "wkv_neuron", "output_neuron"):
                setattr(self, site, neuron(C))

    def forward(self, x: Tensor, shift: Tensor | None, state: WKVState | None, before: dict[str, Any] | None) -> tuple:
        """Return (y, shift, wkv state, site -> neuron state, site -> spikes)."""
        shifted, after, spikes = shift_tokens(x, shift), {}, {}
        key = self.key(self._fire("key_neuron", torch.lerp(shifted, x, self.time_mix_k), before, after, spikes))
        value = self.value(self._fire("value_neuron", torch.lerp(shifted, x, self.time_mix_v), before, after, spikes))
        receptance = self.receptance(
            self._fire("receptance_neuron", torch.lerp(shifted, x, self.time_mix_r), before, after, spikes)
        )
        if self.has_events:
            value = self._fire("wkv_neuron", value, before, after, spikes)
            mean, state = event_wkv(self.time_decay, self.time_first, key, value, state)
            gated = torch.sigmoid(receptance) * mean
        else:
            gated, state = wkv(self.time_decay, self.time_first, key, value, state, receptance=receptance)
        gated = self._fire("output_neuron", gated, before, after, spikes)
        return self.output(gated), x[:, -1], state, after or None, spikes


class ChannelMix(_Mix):
    """RWKV-4 channel mixing: sigmoid(receptance) * value(relu(key)^2), each projection of a token-shift mix."""

    def __init__(self, config: ModelConfig, neuron: NeuronFactory):
        super().__init__()
        C = config.n_embd
        self.time_mix_k = nn.Parameter(torch.empty(1, 1, C))
        self.time_mix_r = nn.Parameter(torch.empty(1, 1, C))
        self.key = nn.Linear(C, config.n_ffn, bias=False)
        self.value = nn.Linear(config.n_ffn, C, bias=False)
        self.receptance = nn.Linear(C, C, bias=False)
        if config.spiking == "input":
            self.key_neuron, self.receptance_neuron = neuron(C), neuron(C)
            self.value_neuron = LIF(config.n_ffn, config.hidden_neuron)

    def forward(self, x: Tensor, shift: Tensor | None, before: dict[str, Any] | None) -> tuple:
        """Return (y, shift, site -> neuron state, site -> spikes)."""
        shifted, after, spikes = shift_tokens(x, shift), {}, {}
        key = self.key(self._fire("key_neuron", torch.lerp(shifted, x, self.time_mix_k), before, after, spikes))
        receptance = self.receptance(
            self._fire("receptance_neuron", torch.lerp(shifted, x, self.time_mix_r), before, after, spikes)
        )
        hidden = self._fire("value_neuron", torch.relu(key).square(), before, after, spikes)
        return torch.sigmoid(receptance) * self.value(hidden), x[:, -1], after or None, spikes


class Block(nn.Module):
    """x + time_mix(ln1(x)), then x + channel_mix(ln2(x)).

    The spike-driven block (`input`) has neurons inside both halves, before every matrix product; the published block
    (`output`) has one layer of them after each half; the dense twin (`none`) has none.
    """

    def __init__(self, config: ModelConfig, layer: int, neuron: NeuronFactory):
        super().__init__()
        self.emits_spikes = config.spiking == "output"
        # of published inference, see ModelConfig.rescale_every
        self.drive = 2.0 ** -(layer // config.rescale_every) if config.rescale_every else 1.0
        self.halves_stream = config.rescale_every > 0 and (layer + 1) % config.rescale_every == 0
        if layer == 0:
            self.ln0 = nn.LayerNorm(config.n_embd)
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.att = TimeMix(config, neuron)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.ffn = ChannelMix(config, neuron)
        if self.emits_spikes:
            self.time_mix_neuron = neuron(config.n_embd)
            self.channel_mix_neuron = neuron(config.n_embd)

    def forward(self, x: Tensor, state: LayerState | None) -> tuple[Tensor, LayerState, dict[str, Tensor]]:
        """Return (x, state, name -> spikes)."""
        before = state or LayerState(None, None, None, None, None)
        mixed, time_mix_shift, wkv_state, time_mix_neuron, inner = self.att(
            self.ln1(x), before.time_mix_shift, before.wkv, before.time_mix_neuron
        )
        spikes = {f"att.{site}": spike for site, spike in inner.items()}
        mixed = mixed if self.drive == 1.0 else self.drive * mixed
        if self.emits_spikes:
            mixed, time_mix_neuron = self.time_mix_neuron(mixed, before.time_mix_neuron)
            spikes["time_mix_neuron"] = mixed
        x = x + mixed
        mixed, channel_mix_shift, channel_mix_neuron, inner = self.ffn(
            self.ln2(x), before.channel_mix_shift, before.channel_mix_neuron
        )
        spikes |= {f"ffn.{site}": spike for site, spike in inner.items()}
        mixed = mixed if self.drive == 1.0 else self.drive * mixed
        if self.emits_spikes:
            mixed, channel_mix_neuron = self.channel_mix_neuron(mixed, before.channel_mix_neuron)
            spikes["channel_mix_neuron"] = mixed
        x = (x + mixed) / 2 if self.halves_stream else x + mixed
        return x, LayerState(time_mix_shift, wkv_state, time_mix_neuron, channel_mix_shift, channel_mix_neuron), spikes


class SpikeGPT(nn.Module):
    """A language model of RWKV-4 blocks whose matrix products read spikes, or whose outputs are spikes, or its dense
    twin.

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
        if config.spiking == "input" and config.spiking_head:
            self.head_neuron = LIF(config.n_embd, config.head_neuron)
        if init:
            initialise(self)

    def forward(self, ids: Tensor, state: State | None = None, *, last_only: bool = False) -> ModelOutput:
        """Return the logits of the next token at every position, the state after the last, and the spikes.

        Args:
            ids: (B, T) whole numbers in [0, vocab_size).
            state: carried in from the tokens before; None at the start of a text.
            last_only: compute the logits of the last position only, (B, 1, vocab_size).

        Returns:
            logits (B, T, vocab_size); state; spikes: name of the emitting module -> (B, T, C), in order, empty if
            dense.

        Raises:
            ValueError: ids are not (B, T) whole numbers or lie outside the vocabulary; the state is another model's.
        """
        x, new_state, spikes = self.hidden(ids, state)
        if last_only:
            x = x[:, -1:]
        if "head_neuron" in self._modules:
            x, _ = self.head_neuron(x)
            spikes["head_neuron"] = x
        return ModelOutput(self.head(x), new_state, spikes)

    def hidden(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Return (what the head reads, before its neurons, if it has any: (B, T, n_embd); state; spikes), as `forward`
        would."""
        self._check_ids(ids)
        if state is not None and len(state) != len(self.blocks):
            raise ValueError(
                f"the state has {len(state)} layers, the model {len(self.blocks)}; it comes from another model"
            )
        x = self.emb(ids)
        spikes = {}
        if self.config.spiking == "output" and self.config.binary_embedding:
            x = spikes["emb"] = heaviside(x, "atan", 2.0)
        x = self.blocks[0].ln0(x)
        new_state = []
        for layer, block in enumerate(self.blocks):
            x, layer_state, emitted = block(x, state[layer] if state is not None else None)
            x = F.dropout(x, self.config.dropout, self.training)
            new_state.append(layer_state)
            spikes |= {f"blocks.{layer}.{name}": spike for name, spike in emitted.items()}
        return self.ln_out(x), tuple(new_state), spikes

    def _check_ids(self, ids: Tensor) -> None:
        if ids.dim() != 2 or 0 in ids.shape or ids.is_floating_point():
            raise ValueError(f"ids must be (B, T) whole numbers with no empty side, got {ids.dtype} {tuple(ids.shape)}")
        if ids.is_cuda or ids.is_meta or torch.compiler.is_compiling():
            # looking at the values would make the GPU wait; the embedding's own check reports there
            return
        lowest, highest = (int(value) for value in ids.aminmax())
        if lowest < 0 or highest >= self.config.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"token id {wrong} is outside the vocabulary [0, {self.config.vocab_size}); is this the model's own "
                f"tokenizer?"
            )

    def synapses(self) -> dict[str, int]:
        """Return name of each layer of neurons whose spikes a matrix product reads -> number of its weights; empty
        unless `input`.

        The neurons `X_neuron` stand before the product `X` of the same module. A spike costs as many synaptic
        operations as it has synapses, so these are the weights of a mean firing rate.
        """
        modules = dict(self.named_modules())
        read = {name: modules.get(name.removesuffix("_neuron")) for name in modules if name.endswith("_neuron")}
        return {name: product.weight.numel() for name, product in read.items() if product is not None}

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the head may be another's, the embedding is always here."""
        return self.emb.weight.device

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this block the model is in evaluation mode; afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


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
        if config.spiking == "input":
            # zero matrices would leave the neurons behind them silent, and orthogonal ones learned no better
            for matrix in (att.key, att.value, att.receptance, att.output, ffn.key, ffn.value, ffn.receptance):
                nn.init.normal_(
                    matrix.weight,
                    std=(0.5 if matrix in (att.output, ffn.value) else 1.0) / math.sqrt(matrix.in_features),
                )
            continue
        for matrix in (att.key, att.receptance, att.output, ffn.value, ffn.receptance):
            nn.init.zeros_(matrix.weight)
        nn.init.orthogonal_(att.value.weight, gain=1.0)
        nn.init.orthogonal_(ffn.key.weight, gain=2.0)
    if config.spiking == "input":
        nn.init.normal_(model.head.weight, std=1 / math.sqrt(C))
        for neuron in (
            module for module in model.modules() if isinstance(module, LIF) and module.config.learnable_decay
        ):
            neuron.decay_logit.fill_(math.log(neuron.config.membrane_decay / (1 - neuron.config.membrane_decay)))
        calibrate_thresholds(model)


@torch.no_grad()
def calibrate_thresholds(model: SpikeGPT, rate: float | None = None, tokens: int = 64) -> None:
    """Set the learnable thresholds of every layer, one number per layer, so that `rate` of its neurons fire on random
    text.

    None takes INITIAL_FIRING_RATES. Layer after layer in one pass over 4 x `tokens` random ids, drawn from torch's
    default generator.
    """

    def calibrate(neuron: LIF, inputs: tuple[Tensor, ...], share: float) -> None:
        current = inputs[0].float()
        driven = (current.abs() if neuron.config.signed else current).flatten()
        threshold = driven.kthvalue(max(round((1 - share) * driven.numel()), 1)).values
        # a layer that nothing reaches keeps its threshold
        if threshold > 0:
            neuron.log_threshold.fill_(torch.log(threshold))

    hooks = []
    for name, neuron in model.named_modules():
        if isinstance(neuron, LIF) and neuron.config.learnable_threshold:
            neuron.log_threshold.fill_(math.log(neuron.config.threshold))
            share = next(
                (rate for site, rate in INITIAL_FIRING_RATES.items() if name.endswith(site)), OTHER_INITIAL_FIRING_RATE
            )
            hooks.append(neuron.register_forward_pre_hook(partial(calibrate, share=rate or share)))
    was_training = model.training
    model.eval()
    model(torch.randint(model.config.vocab_size, (4, tokens), device=model.device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
