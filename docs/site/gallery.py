"""Every figure, drawn of a small untrained model and its twin: how figures look, not what models do."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure

from neuromorphic import load_profile
from neuromorphic.report import context_figures, figures, firing_figures
from neuromorphic.report.canvas import to_png
from neuromorphic.report.context import ContextPoint
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.measure.pictures import membrane_figure, raster_figure, weight_read_figure
from spikegpt.measure.runs import measure_models
from spikegpt.model import SpikeGPT

TEXT = "It was the best of times, it was the worst of times"


def draw() -> dict[str, Figure]:
    """Return figure function, by its dotted name -> what it draws."""
    torch.manual_seed(0)
    config = ModelConfig(n_layer=3, n_embd=32, vocab_size=256)
    model, twin, tokenizer = SpikeGPT(config).eval(), SpikeGPT(config.twin()).eval(), ByteTokenizer()
    profiles = [load_profile(name) for name in ("horowitz45-fp32", "horowitz45-int8", "seneca22")]
    measured = measure_models({"spiking": model, "dense": twin}, tokenizer, TEXT * 2, prompt=TEXT, profiles=profiles)
    points = [_point(policy, context) for policy in ("constant state", "full", "h2o:64") for context in (64, 128, 256)]
    of_measurements = figures.operations, figures.energy, figures.quality_against_operations, figures.state_memory
    of_points = (
        context_figures.bits_against_bytes,
        context_figures.recall_against_bytes,
        context_figures.operations_against_context,
    )
    drawn = {_name(function): function(measured) for function in of_measurements}
    drawn |= {_name(firing_figures.firing_rates): firing_figures.firing_rates(measured)}
    drawn |= {_name(firing_figures.raster): firing_figures.raster(measured[0])}
    drawn |= {_name(firing_figures.spike_raster): raster_figure(model, tokenizer, TEXT, "blocks.1.*")}
    membranes = membrane_figure(model, tokenizer, TEXT, "blocks.1.ffn.key_neuron")
    drawn |= {"neuromorphic.report.trace_figures.membrane_traces": membranes}
    drawn |= {"neuromorphic.report.trace_figures.weight_reads": weight_read_figure(model, tokenizer, TEXT)}
    return drawn | {_name(function): function(points) for function in of_points}


def page() -> tuple[str, dict[str, bytes]]:
    """Return (text of the page, picture, beside it -> PNG)."""
    drawn = draw()
    pictures = {f"gallery/{name}.png": to_png(figure) for name, figure in drawn.items()}
    entries = (f"## {name.rpartition('.')[2]}\n\n[`{name}`][{name}]\n\n![{name}](gallery/{name}.png)" for name in drawn)
    return f"# Gallery\n\n{__doc__}\n\n" + "\n\n".join(entries) + "\n", pictures


def _name(function: Callable[..., Figure]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _point(policy: str, context: int) -> ContextPoint:
    kept = {"constant state": 32, "h2o:64": 64}.get(policy, context)
    return ContextPoint(
        model="spiking" if policy == "constant state" else "attention",
        mixer="rwkv4" if policy == "constant state" else "attention",
        spiking="input" if policy == "constant state" else "none",
        policy=policy,
        budget=64.0 if policy == "h2o:64" else None,
        context=context,
        bytes_by_part={"keys": 64.0 * kept, "values": 64.0 * kept},
        operations={"macs": 4000 + 100 * kept},
        bits_per_byte=2.2 - 0.1 * kept / 64,
        predicted_tokens=context // 2,
        texts=8,
        tokens_per_s=1000.0,
        recalled=min(1.0, kept / 200),
    )
