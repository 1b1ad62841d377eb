"""Graphs of NIR: there and back, what others' readers make of them, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import load_model
from spikegpt.cli.verbs import main
from spikegpt.common.errors import SpikegptError
from spikegpt.config import INPUT_NEURON, ModelConfig, NeuronConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.interop.nir_file import write_chain, write_nir
from spikegpt.interop.nir_graph import DT, OURS, chain_graph, model_graph
from spikegpt.interop.weights import export_weights, import_weights
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import LIF

nir, h5py = pytest.importorskip("nir"), pytest.importorskip("h5py")
SMALL = ModelConfig(n_layer=2, n_embd=16, ctx_len=16)
LEAKY = NeuronConfig(learnable_decay=True, learnable_threshold=True, threshold=0.3)
MODELS = {
    "input": SMALL,
    "input, binary": dataclasses.replace(SMALL, neuron=LEAKY, hidden_levels=1),
    "input, memoryless": dataclasses.replace(
        SMALL, neuron=dataclasses.replace(INPUT_NEURON, levels=1, signed=False), hidden_levels=1, spiking_head=True
    ),
    "input, shared": dataclasses.replace(SMALL, shared_neurons=True),
    "output": ModelConfig(n_layer=2, n_embd=16, ctx_len=16, spiking="output", neuron=LEAKY),
    "none": dataclasses.replace(SMALL, spiking="none"),
    **{
        f"{mixer}, {spiking}": ModelConfig(n_layer=2, n_embd=32, ctx_len=16, mixer=mixer, head_size=16, spiking=spiking)
        for mixer in ("rwkv5", "rwkv6", "rwkv7")
        for spiking in ("input", "output")
    },
}
IDS = torch.arange(40)[None] * 7 % 256


def make_run(folder, config=SMALL):
    torch.manual_seed(0)
    model = SpikeGPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder.mkdir()
    save_model(folder, model, ByteTokenizer())
    return folder, model


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_the_logits_are_equal(name, tmp_path):
    run, model = make_run(tmp_path / "run", MODELS[name])
    write_nir(run, tmp_path / "model.nir")
    assert import_weights(tmp_path / "model.nir", tmp_path / "back") == MODELS[name]
    back, _ = load_model(tmp_path / "back", warn=lambda said: None)
    assert torch.equal(back(IDS).logits, model(IDS).logits)


def test_every_parameter_stands_in_one_node():
    model = SpikeGPT(MODELS["input"])
    held = []
    for node in model_graph(model).nodes.values():
        metadata = node.get("metadata", {})
        held += [name.split()[0] for name in json.loads(metadata.get("parameters", "{}")).values()]
        held += metadata.get("raw", {})
    assert sorted(held) == sorted(model.state_dict())


def test_nodes_of_ours_say_their_equation_and_the_rest_is_of_nir():
    for name in MODELS:
        for place, node in model_graph(SpikeGPT(MODELS[name])).nodes.items():
            if node["type"].startswith(OURS):
                assert node["metadata"]["equation"], place
            else:
                # NIR's own constructors take them
                nir.dict2NIRNode({key: value for key, value in node.items() if key != "metadata"})


def test_a_token_shift_is_two_shares_of_a_delay():
    model = SpikeGPT(SMALL)
    graph = model_graph(model)
    into = {start for start, end in graph.edges if end == "blocks.0.att.key_neuron"}
    assert into == {"blocks.0.att.key.now", "blocks.0.att.key.past"}
    now, past = (graph.nodes[name]["scale"] for name in sorted(into))
    assert (now == model.blocks[0].att.time_mix_k.detach().numpy().reshape(-1)).all()
    assert np.allclose(now + past, 1) and (graph.nodes["blocks.0.att.before"]["delay"] == np.float32(DT)).all()


def steps_of(graph, neuron, inputs):
    """The spikes of a node LIF, by Euler's rule with the step dt."""
    node, v, spikes = graph.nodes[neuron], 0.0, []
    for current in inputs.numpy():
        v = v + DT / node["tau"] * (node["v_leak"] - v + node["r"] * current)
        fires = v > node["v_threshold"]
        v = np.where(fires, node["v_reset"], v)
        spikes.append(fires)
    return torch.from_numpy(np.stack(spikes)).float()


@pytest.mark.parametrize("decay_input", [True, False])
def test_a_leaky_neuron_by_eulers_rule_fires_as_ours(decay_input):
    torch.manual_seed(0)
    neuron = LIF(9, dataclasses.replace(LEAKY, decay_input=decay_input))
    nn.init.normal_(neuron.decay_logit)
    nn.init.normal_(neuron.log_threshold, std=0.3)
    inputs = torch.randn(50, 9)
    ours = neuron(inputs[None])[0][0]
    assert 0 < ours.mean() < 1
    assert torch.equal(steps_of(chain_graph([neuron]), "layer0", inputs), ours)


def stacked():
    """The matrices of a channel mix between leaky neurons: what both libraries can load."""
    torch.manual_seed(0)
    channel_mix = SpikeGPT(MODELS["input, binary"]).blocks[0].ffn
    leaky = NeuronConfig(membrane_decay=0.75, threshold=0.125)
    layers = [LIF(16, leaky), channel_mix.key, LIF(64, leaky), channel_mix.value, LIF(16, leaky)]
    inputs = 2 * torch.randn(60, 16)
    spikes = inputs[None]
    for layer in layers:
        spikes = layer(spikes)[0] if isinstance(layer, LIF) else layer(spikes)
    return layers, inputs, spikes[0].detach()


@pytest.mark.parametrize("library", ["snntorch.import_nir", "spikingjelly.activation_based.nir_exchange"])
@torch.no_grad()
def test_what_nir_holds_loads_in_others_with_the_same_spikes(library, tmp_path):
    importer = pytest.importorskip(library).import_from_nir
    pytest.importorskip("nirtorch")
    layers, inputs, ours = stacked()
    write_chain(layers, tmp_path / "stack.nir")
    theirs, state, spikes = importer(nir.read(tmp_path / "stack.nir")), None, []
    for current in inputs:
        emitted, state = theirs(current[None], state)
        spikes.append(emitted[0])
    assert 0.02 < ours.mean() < 0.98
    assert torch.equal(torch.stack(spikes), ours)


def test_a_chain_of_what_nir_lacks_is_refused():
    with pytest.raises(SpikegptError, match="binary, leaky and reset to their rest"):
        chain_graph([LIF(4, INPUT_NEURON)])


def test_the_command_lists_what_nir_cannot_hold(tmp_path, capsys):
    run, _ = make_run(tmp_path / "run", MODELS["output"])
    assert main(["export", str(run), str(tmp_path / "model.nir")]) == 0
    printed = capsys.readouterr().out
    assert (
        "nodes are NIR's own" in printed and "4 x spikegpt.Gate: a, b = the nodes in reads; y = sigmoid(a) b" in printed
    )
    assert "2 x spikegpt.WKV" in printed and "fire above their threshold" in printed
    assert "4 x spikegpt.Neuron" not in printed
    assert main(["export", str(run), str(tmp_path / "model.nir")]) == 1
    assert "exists; give another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"perspectives": 2}, "2 perspectives"), ({"spiking": "none", "rescale_every": 2, "neuron": None}, "rescale")],
)
def test_a_model_that_no_graph_holds_is_refused_with_the_reason(changes, reason, tmp_path):
    run, _ = make_run(tmp_path / "run", dataclasses.replace(SMALL, **changes))
    with pytest.raises(SpikegptError, match=reason):
        write_nir(run, tmp_path / "model.nir")
    assert not (tmp_path / "model.nir").exists()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nir")
    write_nir(make_run(folder / "run", MODELS["output"])[0], folder / "model.nir")
    return (folder / "model.nir").read_bytes()


def with_edges(change):
    def spoil(nodes, root):
        edges = [tuple(edge) for edge in root["edges"].asstr()[()]]
        del root["edges"]
        root["edges"] = change(edges)

    return spoil


def scaled(nodes, root):
    nodes["blocks.0.time_mix_neuron/tau"][...] = 1.0


def unknown(nodes, root):
    nodes["odd/type"] = "Hopfield"


def without_a_node(nodes, root):
    del nodes["ln_out"]


def another_configuration(nodes, root):
    config = json.loads(root["metadata/config"].asstr()[()])
    del root["metadata/config"]
    root["metadata/config"] = json.dumps({**config, "n_embd": 32})


def of_somebody_else(nodes, root):
    del root["metadata"]


SPOILED = {
    "cycle": (with_edges(lambda edges: [*edges, ("head", "emb")]), "has a cycle, "),
    "an edge more": (
        with_edges(lambda edges: [*edges, ("emb", "ln_out")]),
        "edge from 'emb' to 'ln_out' is not of this",
    ),
    "an edge less": (with_edges(lambda edges: edges[1:]), "edge from 'input' to 'emb' is missing"),
    "unknown node": (unknown, "node 'odd' is not of this model; nothing would run it"),
    "missing node": (without_a_node, "'ln_out.bias' is missing"),
    "changed field": (scaled, "'tau' of node 'blocks.0.time_mix_neuron' was changed"),
    "another model": (another_configuration, r"has shape \(256, 16\), the model wants \(256, 32\)"),
    "somebody else's": (of_somebody_else, "spikegpt did not write: it says nothing of a configuration"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_file_that_is_not_of_its_model_is_refused(fault, file, tmp_path):
    spoil, said = SPOILED[fault]
    (tmp_path / "model.nir").write_bytes(file)
    with h5py.File(tmp_path / "model.nir", "r+") as opened:
        spoil(opened["node/nodes"], opened["node"])
    with pytest.raises(SpikegptError, match=said):
        import_weights(tmp_path / "model.nir", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(lambda whole: whole[: len(whole) // 2], "no whole file of NIR"), (lambda whole: b"PK", "no whole file of NIR")],
)
def test_a_truncated_file_is_refused(content, said, file, tmp_path):
    (tmp_path / "model.nir").write_bytes(content(file))
    with pytest.raises(SpikegptError, match=said):
        import_weights(tmp_path / "model.nir", tmp_path / "back")


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SpikegptError, match=r"model.nir does not exist"):
        import_weights(tmp_path / "model.nir", tmp_path / "back")


def test_from_python_it_is_a_layout_as_the_others_are(tmp_path):
    run, _ = make_run(tmp_path / "run")
    said = export_weights(run, tmp_path / "model.nir", "nir")
    assert any("nodes are NIR's own" in sentence for sentence in said)
    with pytest.raises(SpikegptError, match="exists"):
        export_weights(run, tmp_path / "model.nir", "nir")


def test_settings_that_the_file_has_already_are_said_to_be_idle(tmp_path, capsys):
    run, _ = make_run(tmp_path / "run")
    write_nir(run, tmp_path / "model.nir")
    arguments = ["import", str(tmp_path / "model.nir"), "--out", str(tmp_path / "back"), "--ctx-len", "99"]
    assert main(arguments) == 0
    assert "--ctx-len 99 has no effect: a file of NIR has the model's own configuration" in capsys.readouterr().err
