"""A model as a graph of NIR: its own nodes wherever they say the same, named nodes of ours for everything else.

NIR is in continuous time and its readers agree on a step DT. A node is a dictionary as NIR keeps it in a file. Each of
ours has its equation in its metadata; what reads several nodes by name, not their sum, says so in `reads`. Where a
parameter of the model stands, `parameters` in the metadata says, as field -> name; numbers that a field is a function
of stand there themselves, under `raw`.
Source: Pedersen et al. 2024, Neuromorphic intermediate representation, doi:10.1038/s41467-024-52259-9; package nir.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.errors import SpikegptError
from ..config import NeuronConfig
from ..model.mixers.rwkv4 import ChannelMix, TimeMix
from ..model.network import Block, SpikeGPT
from ..neuron import LIF

# seconds of a token: what snnTorch and SpikingJelly take a step to be
DT = 1e-4
OURS = "spikegpt."
Node = dict[str, Any]

EQUATIONS = {
    "LayerNorm": "y = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias, over the channels",
    "Neuron": "U <- decay U + gain x; n = min(floor(|U| / threshold), levels) with the sign of U, 0 below 0 unless "
    "signed; reset zero: U <- 0 where n, subtract: U <- U - threshold n, none: U stays; y = n",
    "WKV": "a, b = the nodes in reads; y = (s + exp(first + a) b) / (z + exp(first + a)); s <- d s + exp(a) b; "
    "z <- d z + exp(a), d = exp(-exp(time_decay)), first = time_first",
    "EventWKV": "a, b = the nodes in reads; w = exp(a) where b is not 0, else 1, a within 20; y = (s + exp(first) w b) "
    "/ (z + exp(first) w); s <- d s + w b; z <- d z + w, d = exp(-exp(time_decay)), first = time_first",
    "Gate": "a, b = the nodes in reads; y = sigmoid(a) b",
    "SquaredReLU": "y = max(x, 0)^2",
}


class Graph:
    """Nodes by name, edges, and what holds which parameter."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.edges: list[tuple[str, str]] = []

    def add(
        self,
        name: str,
        kind: str,
        reads: Sequence[str],
        fields: dict[str, Any] | None = None,
        parameters: dict[str, str] | None = None,
        raw: Mapping[str, Tensor] | None = None,
        by_name: bool = False,
        equation: str | None = None,
    ) -> str:
        """Add a node that reads the sum of others, or each `by_name`; return its name.

        Args:
            fields: its numbers, as NIR calls them.
            parameters: field -> parameter of the model that stands in it.
            raw: parameter of the model -> its numbers, where fields are functions of them.
        """
        metadata: dict[str, Any] = {}
        if parameters:
            metadata["parameters"] = json.dumps(parameters)
        if raw:
            metadata["raw"] = {parameter: _numpy(tensor) for parameter, tensor in raw.items()}
        equation = equation or EQUATIONS.get(kind.removeprefix(OURS))
        if equation is not None:
            metadata["equation"] = equation
        node: Node = {"type": kind, **(fields or {})}
        if by_name:
            node["reads"] = ",".join(reads)
        if metadata:
            node["metadata"] = metadata
        self.nodes[name] = node
        self.edges += [(source, name) for source in reads]
        return name

    def ours(self) -> dict[str, int]:
        """Return kind of ours -> how many nodes."""
        kinds = [node["type"] for node in self.nodes.values() if node["type"].startswith(OURS)]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def model_graph(model: SpikeGPT) -> Graph:
    """Return the graph of a model, from a token as a one-hot vector to its logits.

    Raises:
        SpikegptError: there is something in the model that no node says; it is named.
    """
    _check_expressible(model)
    graph, config = Graph(), model.config
    x = graph.add("input", "Input", [], {"shape": np.array([config.vocab_size])})
    x = _linear(graph, "emb", model.emb.weight.t(), [x], "emb.weight transposed")
    if model.has_binary_embedding:
        x = graph.add("emb.step", "Threshold", [x], {"threshold": np.zeros(config.n_embd, np.float32)})
    x = _norm(graph, "blocks.0.ln0", model.blocks[0].ln0, x)
    for layer, block in enumerate(model.blocks):
        x = _block(graph, f"blocks.{layer}", block, x)
    x = _norm(graph, "ln_out", model.ln_out, x)
    if model.head_site is not None:
        x = _neuron(graph, "head_neuron", model.head_neuron, [x])
    x = _linear(graph, "head", model.head.weight, [x], "head.weight")
    graph.add("output", "Output", [x], {"shape": np.array([config.vocab_size])})
    return graph


def chain_graph(layers: Sequence[LIF | nn.Linear]) -> Graph:
    """Return the graph of leaky neurons and matrices in a row, all of it NIR's own.

    Raises:
        SpikegptError: a neuron is none that NIR has: binary, leaky, reset to its rest.
    """
    first = layers[0]
    graph = Graph()
    inputs = first.channels if isinstance(first, LIF) else first.in_features
    x = graph.add("input", "Input", [], {"shape": np.array([inputs])})
    size = inputs
    for place, layer in enumerate(layers):
        if isinstance(layer, LIF):
            x = _neuron(graph, f"layer{place}", layer, [x])
        else:
            x = _linear(graph, f"layer{place}", layer.weight, [x])
            size = layer.out_features
    if graph.ours():
        raise SpikegptError("NIR has neurons that are binary, leaky and reset to their rest; these are not")
    for node in graph.nodes.values():
        # a part of no model has no parameters of one
        node.pop("metadata", None)
    graph.add("output", "Output", [x], {"shape": np.array([size])})
    return graph


def _check_expressible(model: SpikeGPT) -> None:
    config = model.config
    reasons = {
        f"{config.perspectives} perspectives read a text with weights that they share": config.perspectives > 1,
        f"rescale_every {config.rescale_every} is of published inference": config.rescale_every > 0,
        "it has neurons of somebody's own": not all(isinstance(at.neuron, LIF) for at in model.sites().values()),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise SpikegptError(f"no graph of NIR holds this model: {reason}, and nothing is left out silently")


def _block(graph: Graph, name: str, block: Block, x: str) -> str:
    for half, norm, site in (("att", "ln1", "time_mix_neuron"), ("ffn", "ln2", "channel_mix_neuron")):
        normed, mixer = _norm(graph, f"{name}.{norm}", getattr(block, norm), x), getattr(block, half)
        if type(mixer) is TimeMix:
            added = _time_mix(graph, f"{name}.att", mixer, normed)
        elif type(mixer) is ChannelMix:
            added = _channel_mix(graph, f"{name}.ffn", mixer, normed)
        else:
            added = _whole_half(graph, f"{name}.{half}", mixer, normed)
        if site in block._modules:
            added = _neuron(graph, f"{name}.{site}", getattr(block, site), [added])
        x = graph.add(f"{name}.{half}.sum", "Scale", [x, added], {"scale": np.ones_like(_numpy(block.ln1.bias))})
    return x


def _time_mix(graph: Graph, name: str, mixer: TimeMix, x: str) -> str:
    key, value, receptance = _projections(graph, name, mixer, x)
    fields = {"time_decay": _numpy(mixer.time_decay), "time_first": _numpy(mixer.time_first)}
    parameters = {field: f"{name}.{field}" for field in fields}
    if mixer.has_events:
        value = _neuron(graph, f"{name}.wkv_neuron", mixer.get_submodule("wkv_neuron"), [value])
    kind = "EventWKV" if mixer.has_events else "WKV"
    mean = graph.add(f"{name}.wkv", OURS + kind, [key, value], fields, parameters, by_name=True)
    gated = graph.add(f"{name}.gate", f"{OURS}Gate", [receptance, mean], by_name=True)
    if mixer.has_events:
        gated = _neuron(graph, f"{name}.output_neuron", mixer.get_submodule("output_neuron"), [gated])
    return _linear(graph, f"{name}.output", mixer.output.weight, [gated], f"{name}.output.weight")


def _channel_mix(graph: Graph, name: str, mixer: ChannelMix, x: str) -> str:
    key, receptance = _projections(graph, name, mixer, x)
    hidden = graph.add(f"{name}.squared", f"{OURS}SquaredReLU", [key])
    if mixer.has_events:
        hidden = _neuron(graph, f"{name}.value_neuron", mixer.get_submodule("value_neuron"), [hidden])
    value = _linear(graph, f"{name}.value", mixer.value.weight, [hidden], f"{name}.value.weight")
    return graph.add(f"{name}.gate", f"{OURS}Gate", [receptance, value], by_name=True)


def _projections(graph: Graph, name: str, mixer: TimeMix | ChannelMix, x: str) -> list[str]:
    """The products that read the stream: a share of this token and the rest of the one before, summed by two edges."""
    one = np.ones(mixer.key.in_features, np.float32)
    before = graph.add(f"{name}.before", "Delay", [x], {"delay": DT * one})

    def mixed(of: str, projection: str, parameter: str) -> list[str]:
        share = _numpy(mixer.mix_of(projection)).reshape(-1)
        now = graph.add(f"{name}.{of}.now", "Scale", [x], {"scale": share}, {"scale": f"{name}.{parameter}"})
        return [now, graph.add(f"{name}.{of}.past", "Scale", [before], {"scale": one - share})]

    shared = None
    if mixer.shares_neurons:
        reads = mixed("input", mixer.projections[0], "time_mix")
        shared = _neuron(graph, f"{name}.input_neuron", mixer.get_submodule("input_neuron"), reads)
    outcomes = []
    for projection in mixer.projections:
        if shared is not None:
            reads = [shared]
        else:
            reads = mixed(projection, projection, f"{mixer.mix_prefix}_{projection[0]}")
            if mixer.has_events:
                neuron = f"{projection}_neuron"
                reads = [_neuron(graph, f"{name}.{neuron}", mixer.get_submodule(neuron), reads)]
        weight = getattr(mixer, projection).weight
        outcomes.append(_linear(graph, f"{name}.{projection}", weight, reads, f"{name}.{projection}.weight"))
    return outcomes


def _whole_half(graph: Graph, name: str, mixer: nn.Module, x: str) -> str:
    """A half of another generation: one node of ours with all its parameters."""
    tensors = {parameter.replace(".", "_"): (parameter, tensor) for parameter, tensor in mixer.named_parameters()}
    kind = type(mixer)
    first = (kind.__doc__ or "").split("\n")[0]
    reads = [x]
    if getattr(mixer, "takes_first", False) and name != "blocks.0.att":
        reads.append("blocks.0.att")
    return graph.add(
        name,
        OURS + kind.__name__,
        reads,
        {field: _numpy(tensor) for field, (_, tensor) in tensors.items()},
        {field: f"{name}.{parameter}" for field, (parameter, _) in tensors.items()},
        by_name=True,
        equation=f"{first} {kind.__module__.replace('.', '/')}.py",
    )


def _linear(graph: Graph, name: str, weight: Tensor, reads: list[str], parameter: str | None = None) -> str:
    return graph.add(name, "Linear", reads, {"weight": _numpy(weight)}, {"weight": parameter} if parameter else None)


def _norm(graph: Graph, name: str, norm: nn.LayerNorm, x: str) -> str:
    fields = {"weight": _numpy(norm.weight), "bias": _numpy(norm.bias), "eps": norm.eps}
    return graph.add(name, f"{OURS}LayerNorm", [x], fields, {part: f"{name}.{part}" for part in ("weight", "bias")})


def _neuron(graph: Graph, name: str, neuron: nn.Module, reads: list[str]) -> str:
    """Neurons as NIR has them, if they are such: binary, leaky and reset to their rest, or binary and memoryless."""
    assert isinstance(neuron, LIF)
    config, one = neuron.config, np.ones(neuron.channels, np.float32)
    raw = {f"{name}.{parameter}": tensor for parameter, tensor in neuron.named_parameters()}
    threshold, decay = one * _number(neuron.threshold), one * _number(neuron.membrane_decay)
    if is_of_nir(config):
        gain = 1 - decay if config.decay_input else one
        # Euler: v <- v + dt / tau (v_leak - v + r x)
        tau = (DT / (1 - decay)).astype(np.float32)
        rest = one * np.float32(config.reset_potential)
        resistance = gain / (1 - decay)
        fields = {"tau": tau, "r": resistance, "v_leak": rest, "v_threshold": threshold, "v_reset": rest}
        return graph.add(name, "LIF", reads, fields, raw=raw)
    if config.is_memoryless and not config.is_integer and config.reset_potential == 0:
        return graph.add(name, "Threshold", reads, {"threshold": threshold}, raw=raw)
    gain = 1 - decay if config.decay_input else one
    numbers = {
        **{"membrane_decay": decay, "gain": gain, "threshold": threshold, "levels": config.levels},
        **{"signed": int(config.signed), "rest": config.reset_potential},
    }
    fields = {**numbers, "reset": config.reset}
    return graph.add(name, f"{OURS}Neuron", reads, fields, raw=raw)


def is_of_nir(config: NeuronConfig) -> bool:
    """Whether NIR's LIF is this neuron, but for a potential that is just the threshold: there > is meant, here >=."""
    is_leaky = not config.is_memoryless and (config.learnable_decay or config.membrane_decay < 1)
    return not config.is_integer and config.reset == "zero" and is_leaky and math.isfinite(config.threshold)


def _number(value: float | Tensor) -> np.ndarray:
    return _numpy(torch.as_tensor(value, dtype=torch.float32))


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
