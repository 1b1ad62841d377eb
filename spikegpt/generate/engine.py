"""Recurrent decoding: the whole network one token at a time, with carried state, event-driven where spikes are read.

On the CPU the token step is one compiled function (`compiled/token_step.py`): it lists the inputs of every matrix
product that are not zero and reads only their rows of the weights. What fires rarely costs little; the dense twin runs
through the same function with long lists. Many texts at once, other neurons and other devices go through the model's
own forward pass.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig, NeuronConfig
from ..kernels import EventWKVState, WKVState
from ..kernels.backends import is_installed
from ..kernels.reference import EVENT_KEY_LIMIT
from ..model.network import LayerState, SpikeGPT, State
from ..neuron.lif import LIF

WEIGHTS = ("float32", "bfloat16", "int8")

# texts times density (the share of weight rows that a token reads) above which one dense product over all texts is
# faster than gathering rows text by text; benchmarks/decode.py --batch measures it
GATHERED_TEXTS = 3.0

# layers of neurons with C members in a block, in the order of `token_step`
_SITES = {
    "none": [],
    "output": ["time_mix_neuron", "channel_mix_neuron"],
    "input": [
        f"{half}_neuron"
        for half in ("att.key", "att.value", "att.receptance", "att.wkv", "att.output", "ffn.key", "ffn.receptance")
    ],
}
# weights in matrices below which waking a second thread for every token costs more than it saves
SHARED_WEIGHTS = 10_000_000

# arrivals at the gate that no meeting waits for
OPEN = 1 << 62

_PRODUCTS = ("att.key", "att.value", "att.receptance", "att.output", "ffn.key", "ffn.receptance", "ffn.value")
# where `token_step` counts the inputs of each product, in the order of _PRODUCTS, and the head's
_COUNTED = (0, 1, 2, 4, 5, 6, 7)
_HEAD_COUNTED = 8


class Engine:
    """Decodes texts with `model` token by token: `start` with a state, then `step` after `step`.

    Args:
        model: whose weights are copied, so later changes of the model are not seen.
        weights: how they are stored: float32 (or the model's float64), bfloat16, or int8 with a scale per output. The
            state, the neurons and the sums are float32 always (float64 in a float64 model).
        threads: that share the work of a token; None takes torch's number, or one for a small model.

    Raises:
        ValueError: unknown `weights`, or a model that cannot be decoded by rows while `weights` is not its own.
    """

    def __init__(self, model: SpikeGPT, weights: str = "float32", threads: int | None = None):
        if weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}; known: {', '.join(WEIGHTS)}")
        self.model, self.threads = (
            model,
            threads or (torch.get_num_threads() if _weights(model) >= SHARED_WEIGHTS else 1),
        )
        self.reason = why_not_by_rows(model)
        if self.reason and weights != "float32":
            raise ValueError(f"{weights} weights need decoding by rows, and {self.reason}; use weights='float32'")
        self._packed = None if self.reason else _Packed(model, weights, self.threads)
        self._state: State | None = None
        self.by_rows, self._is_chosen, self._is_started = False, True, False

    def start(self, state: State, by_rows: bool | None = None) -> None:
        """Take over the state (of one or several texts) that reading the beginning of the texts has left.

        `by_rows` says whether rows are gathered text by text, or one dense pass serves all texts; None reads the first
        token by rows, and goes on with what is faster at the density seen.

        Raises:
            ValueError: `by_rows` is asked for and cannot be.
        """
        if by_rows and self._packed is None:
            raise ValueError(f"this model cannot be decoded by rows: {self.reason}")
        self.by_rows = self._packed is not None if by_rows is None else by_rows
        self._is_chosen, self._is_started = by_rows is not None, True
        if self.by_rows:
            self._packed.take(state)
        else:
            self._state = state

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each text, (B,), and return the logits of the next, (B, vocab_size).

        Raises:
            ValueError: not one token of the vocabulary per text, or no text was started.
        """
        if not self._is_started:
            raise ValueError(
                "step: no text was started; call start(state) with the state that reading its beginning has left"
            )
        if self.by_rows:
            logits = self._packed.step(tokens)
            if not self._is_chosen:
                self._choose(len(tokens))
            return logits
        output = self.model(tokens.to(self.model.device).unsqueeze(1), self._state)
        self._state = output.state
        return output.logits[:, -1]

    def _choose(self, texts: int) -> None:
        """Go on with the model's forward pass if it is faster; one text is always read by rows, for it shares its pass
        with none."""
        self._is_chosen = True
        if texts > 1 and texts * self.density() > GATHERED_TEXTS:
            self._state, self.by_rows = self._packed.give(), False

    def state(self) -> State:
        """Return the state after the last token, as the model's forward pass takes it."""
        return self._packed.give() if self.by_rows else self._state

    def density(self) -> float:
        """Return the share of the weights read per token so far; 1 before any token was read by rows.

        In a spike-driven model with a spiking head it is the mean firing rate, weighted by synapses.
        """
        return self._packed.density() if self._packed is not None else 1.0

    def spike_counts(self) -> dict[str, int]:
        """Return layer of neurons -> how many of its neurons fired, over all tokens read by rows; of a spike-driven
        model."""
        return self._packed.spike_counts(self.model.synapses()) if self._packed is not None else {}


def _weights(model) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))


def why_not_by_rows(model: SpikeGPT) -> str:
    """Return why the compiled token step cannot serve `model`, or an empty string if it can."""
    if not isinstance(model, SpikeGPT):
        return f"{type(model).__name__} is not a SpikeGPT"
    weight = model.head.weight
    if weight.device.type != "cpu":
        return f"the model is on {weight.device}"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"the model is in {weight.dtype}"
    if model.config.rescale_every:
        return "it is rescaled as in published inference"
    if not is_installed("numba"):
        return "numba is not installed"
    neurons = [module for name, module in model.named_modules() if name.endswith("_neuron")]
    for neuron in neurons:
        if not isinstance(neuron, LIF):
            return f"its neurons are {type(neuron).__name__}, not our LIF"
        if neuron.config not in _known_neurons(model.config):
            return f"a neuron differs from the model's configuration: {neuron.config}"
    return ""


def _known_neurons(config: ModelConfig) -> list[NeuronConfig]:
    if config.spiking != "input":
        return [config.neuron]
    return [config.neuron, config.hidden_neuron, config.head_neuron]


class _Packed:
    """The weights by rows, the state and the scratch memory of the compiled token step."""

    def __init__(self, model: SpikeGPT, weights: str, threads: int):
        from .compiled import token_step

        self.step_function, self.config, self.threads = token_step.decode, model.config, threads
        real = torch.float64 if model.head.weight.dtype == torch.float64 else torch.float32
        blocks = model.blocks
        L, C, F = len(blocks), model.config.n_embd, model.config.n_ffn
        kind = list(_SITES).index(model.config.spiking)
        stacks = [torch.stack([_module(block, name).weight.detach().T for block in blocks]) for name in _PRODUCTS]
        stored = [_store(stack, weights) for stack in (*stacks, model.head.weight.detach().T.unsqueeze(0))]
        embedding = model.emb.weight.detach()
        if kind == token_step.OUTPUT and model.config.binary_embedding:
            embedding = (embedding >= 0).to(real)
        neuron = model.config.neuron
        self.sites = sites = _SITES[model.config.spiking]
        hidden = torch.zeros(L, 4, 1)
        if kind == token_step.INPUT:
            hidden = torch.stack([_neuron_rows(block.ffn.value_neuron, F, real) for block in blocks])
        has_spiking_head = hasattr(model, "head_neuron")
        head_neuron = _neuron_rows(model.head_neuron, C, real) if has_spiking_head else torch.zeros(4, C)
        is_memoryless = neuron.membrane_decay == 0 and not neuron.learnable_decay
        options = (
            neuron.levels,
            neuron.signed,
            neuron.reset == "zero",
            model.config.hidden_levels,
            has_spiking_head,
            is_memoryless,
        )
        self.constants = (
            kind,
            _array(embedding, real),
            _norm(model.blocks[0].ln0, real),
            _norm(model.ln_out, real),
            tuple(rows if index < 7 else rows[0] for index, (rows, _) in enumerate(stored)),
            tuple(scales if index < 7 else scales[0] for index, (_, scales) in enumerate(stored)),
            _array(torch.stack([_channel_rows(block, kind == token_step.INPUT) for block in blocks]), real),
            _array(torch.stack([_site_rows(block, sites, C, real) for block in blocks]), real),
            _array(hidden, real),
            _array(head_neuron, real),
            np.array(options, np.int64),
            _array(torch.tensor(neuron.reset_potential), real)[()],
        )
        self.shared = np.zeros((6, max(C, F)), _array(embedding[:1], real).dtype)
        self.events = np.zeros((L, 9), np.int64)
        self.tokens_read = 0
        self.gate = np.zeros(1, np.int64)
        self.weight_rows = [stack.shape[1] * stack.shape[2] for stack in stacks]
        self.fan_out = np.array([stack.shape[2] for stack in stacks])
        self.head_size = (C, model.head.out_features)
        # threads are gone in a forked process
        self.pool: tuple[int, ThreadPoolExecutor] | None = None

    def take(self, state: State) -> None:
        from .compiled import token_step as nd

        B, L, C = state[0].time_mix_shift.shape[0], len(state), self.config.n_embd
        real = self.shared.dtype
        self.state = np.zeros((B, L, nd.STATE_ROWS, C), real)
        self.potential = np.zeros((B, L, max(len(self.sites), 1), C), real)
        is_input = self.config.spiking == "input"
        self.hidden_potential = np.zeros((B, L, self.config.n_ffn if is_input else 1), real)
        for layer, part in enumerate(state):
            rows = self.state[:, layer]
            rows[:, nd.TIME_SHIFT], rows[:, nd.CHANNEL_SHIFT] = (
                part.time_mix_shift.detach().numpy(),
                part.channel_mix_shift.detach().numpy(),
            )
            for row, sums in enumerate(part.wkv):
                rows[:, nd.NUMERATOR + row] = sums.detach().numpy()
            for site, potential in enumerate(_potentials(part, self.sites)):
                if potential is not None:
                    self.potential[:, layer, site] = potential.detach().numpy()
            if is_input and part.channel_mix_neuron["value_neuron"] is not None:
                self.hidden_potential[:, layer] = part.channel_mix_neuron["value_neuron"].detach().numpy()
        self.logits = np.empty((B, self.config.vocab_size), real)

    def give(self) -> State:
        from .compiled import token_step as nd

        kept = self.constants[10][5] == 0

        def copy(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array.copy())

        state = []
        for layer in range(self.state.shape[1]):
            rows, volts = self.state[:, layer], self.potential[:, layer]
            if self.config.spiking == "input":
                wkv = EventWKVState(copy(rows[:, nd.NUMERATOR]), copy(rows[:, nd.DENOMINATOR]))
                halves = {"att": {}, "ffn": {}}
                for site, name in enumerate(self.sites):
                    half, name = name.split(".")
                    halves[half][name] = copy(volts[:, site]) if kept else None
                halves["ffn"]["value_neuron"] = copy(self.hidden_potential[:, layer]) if kept else None
                time_mix_neuron, channel_mix_neuron = halves["att"], halves["ffn"]
            else:
                wkv = WKVState(*(copy(rows[:, nd.NUMERATOR + row]) for row in range(3)))
                time_mix_neuron, channel_mix_neuron = (
                    (copy(volts[:, site]) for site in (0, 1)) if self.sites and kept else (None, None)
                )
            state.append(
                LayerState(
                    copy(rows[:, nd.TIME_SHIFT]),
                    wkv,
                    time_mix_neuron,
                    copy(rows[:, nd.CHANNEL_SHIFT]),
                    channel_mix_neuron,
                )
            )
        return tuple(state)

    def step(self, tokens: Tensor) -> Tensor:
        ids = tokens.numpy().astype(np.int64)
        outside = (ids < 0) | (ids >= self.config.vocab_size)
        if ids.shape != self.state.shape[:1] or outside.any():
            raise ValueError(
                f"step: want {len(self.state)} token ids in [0, {self.config.vocab_size}), one per text, got "
                f"{ids.tolist()}"
            )
        self.gate[0], helpers, is_done = 0, [], False
        try:
            for part in range(1, self.threads):
                helpers.append(self._pool().submit(self._run, part, ids))
            self._run(0, ids)
            is_done = True
        finally:
            # where Ctrl-C came before this thread did, the others would wait for it for ever
            if not is_done:
                self.gate[0] = OPEN
            for helper in helpers:
                helper.result()
        self.tokens_read += len(ids)
        return torch.from_numpy(self.logits.copy())

    def _run(self, part: int, ids: np.ndarray) -> None:
        work = (self.state, self.potential, self.hidden_potential, self.shared, self.events, self.logits)
        self.step_function(part, self.threads, self.gate, ids, *self.constants, *work)

    def _pool(self) -> ThreadPoolExecutor:
        if self.pool is None or self.pool[0] != os.getpid():
            self.pool = os.getpid(), ThreadPoolExecutor(self.threads - 1, thread_name_prefix="spikegpt-decode")
        return self.pool[1]

    def spike_counts(self, names: Iterable[str]) -> dict[str, int]:
        counted = dict(zip(_PRODUCTS, _COUNTED, strict=True))
        counts = {}
        for name in names:
            block, _, site = name.removeprefix("blocks.").removesuffix("_neuron").partition(".")
            counts[name] = int(self.events[int(block), counted[site]] if site else self.events[0, _HEAD_COUNTED])
        return counts

    def density(self) -> float:
        if not self.tokens_read:
            return 1.0
        read = (self.events[:, _COUNTED] * self.fan_out).sum() + self.events[0, _HEAD_COUNTED] * self.head_size[1]
        whole = self.state.shape[1] * sum(self.weight_rows) + self.head_size[0] * self.head_size[1]
        return float(read / whole / self.tokens_read)


def _module(block, name: str):
    half, product = name.split(".")
    return getattr(getattr(block, half), product)


def _array(tensor: Tensor, real: torch.dtype) -> np.ndarray:
    return tensor.detach().to(real).contiguous().numpy()


def _norm(norm, real: torch.dtype) -> np.ndarray:
    """(2, C): weight and bias."""
    return _array(torch.stack([norm.weight, norm.bias]), real)


def _store(stack: Tensor, weights: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (weights (L, in, out) as they are kept, scales (L, out) or (L, 0))."""
    stack = stack.contiguous()
    nothing = np.zeros((stack.shape[0], 0), np.float32 if stack.dtype != torch.float64 else np.float64)
    if weights == "bfloat16":
        return stack.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16), nothing
    if weights == "int8":
        scales = (stack.abs().amax(dim=1) / 127).clamp(min=1e-30)
        return (stack / scales.unsqueeze(1)).round().to(torch.int8).numpy(), scales.numpy()
    return stack.numpy(), nothing


def _channel_rows(block, has_events: bool) -> Tensor:
    """(11, C) in the order of `token_step`."""
    att, ffn = block.att, block.ffn
    rate = -torch.exp(att.time_decay.clamp(max=60.0))
    decay, first = rate, att.time_first
    if has_events:
        decay, first = torch.exp(rate), torch.exp(first.clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT))
    rows = (
        block.ln1.weight,
        block.ln1.bias,
        block.ln2.weight,
        block.ln2.bias,
        att.time_mix_k,
        att.time_mix_v,
        att.time_mix_r,
    )
    return torch.stack([row.detach().flatten() for row in (*rows, ffn.time_mix_k, ffn.time_mix_r, decay, first)])


def _site_rows(block, sites: list[str], channels: int, real: torch.dtype) -> Tensor:
    """(sites, 4, C); one row of zeros if there is none."""
    modules = [block.get_submodule(site) for site in sites]
    return (
        torch.stack([_neuron_rows(module, channels, real) for module in modules])
        if modules
        else torch.zeros(1, 4, channels)
    )


def _neuron_rows(neuron: LIF, channels: int, real: torch.dtype) -> Tensor:
    """(4, channels): decay, gain of the current, pull towards rest, threshold, in the units of the neuron's own
    potential."""
    config = neuron.config
    decay = torch.as_tensor(neuron.membrane_decay, dtype=real).detach().expand(channels)
    threshold = torch.as_tensor(neuron.threshold, dtype=real).detach().expand(channels)
    gain = 1 - decay if config.decay_input else torch.ones_like(decay)
    if config.learnable_threshold and not config.is_integer:
        # such a neuron measures its potential in thresholds
        gain, threshold = gain / threshold, torch.ones_like(threshold)
    return torch.stack([decay, gain, (1 - decay) * config.reset_potential, threshold])


def _potentials(part: LayerState, sites: list[str]) -> list[Tensor | None]:
    if not sites:
        return []
    if "." not in sites[0]:
        return [part.time_mix_neuron, part.channel_mix_neuron]
    halves = {"att": part.time_mix_neuron, "ffn": part.channel_mix_neuron}
    return [halves[half][name] for half, name in (site.split(".") for site in sites)]
