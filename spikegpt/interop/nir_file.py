"""Files of NIR: a model written as a graph, and read back. What is in the graph: nir_graph.py.

Nothing is believed that is read: the model that the parameters make is turned into a graph once more, and that has to
be the one in the file, node by node and edge by edge. Files are read as HDF5: nir.read knows no nodes but its own.
"""

import dataclasses
import io
import json
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint.run import find_model
from ..checkpoint.weights import load_model, load_weights
from ..common.errors import SpikegptError
from ..common.files import write_atomically
from ..common.json_text import parse_json
from ..config import ModelConfig
from ..data.tokenizers import Tokenizer, load_tokenizer
from ..model.network import SpikeGPT
from ..model.quantised import FULL
from ..neuron import LIF
from .nir_graph import DT, EQUATIONS, OURS, Graph, chain_graph, model_graph

FORMAT = 1
SUFFIX = ".nir"
# exponentials of another machine may differ in their last place
TOLERANCE = 1e-5
GRAPH = "NIRGraph"


class _Written:
    """What nir.write asks of a graph; a node of ours is in no list of its own."""

    def __init__(self, graph: Graph, metadata: dict[str, Any]):
        self._values = {"type": GRAPH, "nodes": graph.nodes, "edges": graph.edges, "metadata": metadata}

    def to_dict(self) -> dict[str, Any]:
        return self._values


def write_nir(run: Path, target: Path) -> list[str]:
    """Write the model of a run into a file of NIR; return what to know of it, in sentences.

    Raises:
        SpikegptError: something in the model has no node, or nir is not installed.
    """
    model, _ = load_model(run)
    graph = model_graph(model)
    # codes are numbers there
    config = dataclasses.replace(model.config, weight_bits=FULL)
    metadata = {
        "spikegpt": FORMAT,
        "dt": DT,
        "config": json.dumps(config.to_dict()),
        "tokenizer": (find_model(run) / "tokenizer.json").read_text(encoding="utf-8"),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, _as_bytes(graph, metadata))
    return what_nir_lacks(graph, model.config)


def write_chain(layers: Sequence[LIF | nn.Linear], target: Path) -> None:
    """Write leaky neurons and matrices in a row, all of it NIR's own, so that other libraries load it.

    Raises:
        SpikegptError: a neuron is none that NIR has, something stands at the target, or nir is not installed.
    """
    graph = chain_graph(layers)
    if target.exists():
        raise SpikegptError(f"{target} exists; give another name, or remove it")
    write_atomically(target, _as_bytes(graph, {}))


def _as_bytes(graph: Graph, metadata: dict[str, Any]) -> bytes:
    # in memory: where the disk is full HDF5 ends the process
    held = io.BytesIO()
    _nir().write(held, _Written(graph, metadata))
    return held.getvalue()


def what_nir_lacks(graph: Graph, config: ModelConfig) -> list[str]:
    """Return sentences: how much of a graph is NIR's own, what is ours with its equation, where the two differ."""
    ours = graph.ours()
    own = len(graph.nodes) - sum(ours.values())
    said = [f"{own} nodes are NIR's own, {sum(ours.values())} are ours, which no other reader runs:"]
    for kind, count in ours.items():
        equation = EQUATIONS.get(kind.removeprefix(OURS), "a half of a block, with all its parameters")
        said.append(f"  {count} x {kind}: {equation}")
    kinds = {node["type"] for node in graph.nodes.values()}
    if kinds & {"LIF", "Threshold"}:
        said.append(
            "NIR's neurons fire above their threshold, ours at it too: they differ where a potential is just that"
        )
    said.append(f"one token is dt = {DT:g} s, for tau and Delay; a token comes in as a one-hot vector")
    if config.weight_bits < FULL:
        said.append(f"weights of {config.weight_bits:g} bits are written as the float32 numbers that they stand for")
    return said


def is_nir(source: Path) -> bool:
    """Whether a file is to be read as NIR, by its name."""
    return source.suffix.lower() == SUFFIX


def read_nir(source: Path, scratch: Path) -> tuple[SpikeGPT, Tokenizer]:
    """Return the model and the tokenizer in a file that `write_nir` wrote; `scratch`: a folder for its tokenizer.

    Raises:
        SpikegptError: it is no whole file of NIR, or of another model, or its graph is not the one that its parameters
            make: a node or an edge is missing, unknown or changed; it is named.
    """
    values = _read(source)
    metadata = values.get("metadata", {})
    if "config" not in metadata or "tokenizer" not in metadata:
        raise SpikegptError(
            f"{source} is a graph of NIR that spikegpt did not write: it says nothing of a configuration; "
            "only files of spikegpt export can be read back"
        )
    if metadata.get("spikegpt") != FORMAT:
        raise SpikegptError(f"{source} has format {metadata.get('spikegpt')!r}, want {FORMAT}; update spikegpt")
    nodes, edges = values["nodes"], {(str(a), str(b)) for a, b in values["edges"]}
    _check_acyclic(source, nodes, edges)
    try:
        config = ModelConfig.from_dict(parse_json(metadata["config"]))
        scratch.joinpath("tokenizer.json").write_text(metadata["tokenizer"], encoding="utf-8")
        tokenizer = load_tokenizer(scratch / "tokenizer.json")
        model = SpikeGPT(config, init=False)
    except ValueError as error:
        raise SpikegptError(f"{source}: its configuration cannot be read ({error}); get the file again") from None
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights = {}
    for name, numbers in _parameters(source, nodes).items():
        shape = shapes.get(name, torch.Size(numbers.shape))
        fits = numbers.numel() == shape.numel()
        weights[name] = numbers.reshape(shape) if fits else numbers
    load_weights(model, weights, source)
    _check_same(source, model_graph(model), nodes, edges)
    return model.eval(), tokenizer


def _read(source: Path) -> dict[str, Any]:
    nir = _nir()
    import h5py

    try:
        with h5py.File(source, "r") as file:
            values = nir.serialization.hdf2dict(file["node"])
    except FileNotFoundError:
        raise SpikegptError(f"{source} does not exist") from None
    except (OSError, KeyError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise SpikegptError(f"{source} is no whole file of NIR ({reason}); get it again") from None
    if values.get("type") != GRAPH or not isinstance(values.get("nodes"), dict) or "edges" not in values:
        raise SpikegptError(f"{source} holds {values.get('type', 'nothing')!r}, want a graph of NIR; get it again")
    edges = np.asarray(values["edges"]).reshape(-1, 2)
    values["edges"] = [tuple(name.decode() if isinstance(name, bytes) else name for name in edge) for edge in edges]
    return values


def _check_acyclic(source: Path, nodes: dict[str, Any], edges: set[tuple[str, str]]) -> None:
    before: dict[str, set[str]] = {name: set() for name in nodes}
    for start, end in edges:
        before.setdefault(end, set()).add(start)
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        raise SpikegptError(
            f"{source} has a cycle, {' -> '.join(error.args[1])}; a model carries its state inside "
            "nodes, and its graph has none"
        ) from None


def _parameters(source: Path, nodes: dict[str, Any]) -> dict[str, Tensor]:
    """Name of a parameter -> its numbers, from the fields and the metadata of all nodes."""
    found: dict[str, Any] = {}
    for name, node in nodes.items():
        metadata = node.get("metadata", {})
        try:
            for field, parameter in parse_json(metadata.get("parameters", "{}")).items():
                parameter, _, form = parameter.partition(" ")
                found[parameter] = node[field].T if form == "transposed" else node[field]
            found |= metadata.get("raw", {})
        except (ValueError, KeyError, AttributeError) as error:
            raise SpikegptError(
                f"{source}: node {name!r} does not hold its parameters ({error}); get it again"
            ) from None
    return {name: torch.from_numpy(np.array(numbers, dtype=np.float32)) for name, numbers in found.items()}


def _check_same(source: Path, graph: Graph, nodes: dict[str, Any], edges: set[tuple[str, str]]) -> None:
    """Raise SpikegptError unless nodes and edges are those of `graph`."""
    for what, wanted, found in (("node", set(graph.nodes), set(nodes)), ("edge", set(graph.edges), edges)):
        for one in sorted(wanted - found):
            raise SpikegptError(f"{source}: {what} {_named(one)} is missing; the graph is not whole")
        for one in sorted(found - wanted):
            raise SpikegptError(f"{source}: {what} {_named(one)} is not of this model; nothing would run it")
    for name, wanted_node in graph.nodes.items():
        node = nodes[name]
        if node.get("type") != wanted_node["type"]:
            raise SpikegptError(f"{source}: node {name!r} is a {node.get('type')!r}, want {wanted_node['type']!r}")
        for field, value in wanted_node.items():
            if field != "metadata" and not _is_close(node.get(field), value):
                raise SpikegptError(
                    f"{source}: {field!r} of node {name!r} was changed: it does not go with the model's parameters, "
                    "which stand in the metadata"
                )


def _named(one: Any) -> str:
    return repr(one) if isinstance(one, str) else f"from {one[0]!r} to {one[1]!r}"


def _is_close(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) or found is None or isinstance(found, str | dict):
        return found == wanted
    found = np.asarray(found)
    return found.shape == np.shape(wanted) and bool(np.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE))


def _nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise SpikegptError(f"files of NIR need {error.name}; pip install 'spikegpt[nir]'") from None
    return nir
