"""The pages of the reference: one for each door, which is a package or module whose names are public."""

import ast
import importlib
from pathlib import Path

TREE = Path(__file__).parents[2]
# door -> what stands there
DOORS = {
    "spikegpt": "The shop window: what most programs need.",
    "spikegpt.config": "Configurations and presets.",
    "spikegpt.model": "The network, what it is made of, and what neurons do in it.",
    "spikegpt.model.mixers": "What a half of a block is, by generation.",
    "spikegpt.model.cache": "Policies of a key-value cache.",
    "spikegpt.neuron": "Neurons.",
    "spikegpt.kernels": "Operations, each with a plain reference and fast kernels.",
    "spikegpt.train": "Training, and callbacks.",
    "spikegpt.checkpoint": "Run folders and weights.",
    "spikegpt.data": "From text to tokens.",
    "spikegpt.data.tokenizers": "Text to ids and back.",
    "spikegpt.generate": "Writing text.",
    "spikegpt.evaluate": "How well a text is predicted.",
    "spikegpt.measure.runs": "Measuring runs and models.",
    "spikegpt.measure.pictures": "Figures of what a model does with a text.",
    "spikegpt.huggingface": "The Auto classes of Hugging Face.",
    "neuromorphic": "Counts, firing statistics and estimates of energy, of any torch model.",
    "neuromorphic.energy": "Estimates of energy, from price tables.",
    "neuromorphic.report": "A report of measurements.",
    "neuromorphic.report.canvas": "How figures look and are saved.",
    "neuromorphic.report.figures": "Figures of operations, energy, quality and memory.",
    "neuromorphic.report.firing_figures": "Figures of spikes.",
    "neuromorphic.report.film": "A raster as a film.",
    "neuromorphic.report.trace_figures": "Figures of membranes and of weights that are read.",
    "neuromorphic.report.context_figures": "Figures of what a text's memory costs.",
}


def public_names(door: str) -> list[str]:
    """Return the public names of a door: its `__all__`, or else what it defines without an underscore."""
    module = importlib.import_module(door)
    names = getattr(module, "__all__", None)
    if names is not None:
        return [name for name in names if not name.startswith("__")]
    assert module.__file__ is not None
    body = ast.parse(Path(module.__file__).read_text()).body
    defined = (node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return [name for name in defined if not name.startswith("_")]


def identifier(door: str, name: str) -> str:
    """Return where the docstring of a name is read: the window of `spikegpt`, which is lazy, only points to it."""
    if door != "spikegpt":
        return f"{door}.{name}"
    home = importlib.import_module(door)._HOME[name]
    return f"{door}.{home}.{name}"


def pages() -> dict[str, str]:
    """Return page, from the top of the site -> its text."""
    texts = {"reference/index.md": _index()}
    for door, text in DOORS.items():
        blocks = (f"::: {identifier(door, name)}\n" for name in public_names(door))
        texts[page_of(door)] = f"# {door}\n\n{text}\n\n" + "\n".join(blocks)
    return texts


def page_of(door: str) -> str:
    return f"reference/{door}.md"


def _index() -> str:
    rows = (
        f"| [`{door}`]({door}.md) | {text} {', '.join(f'`{name}`' for name in public_names(door))} |"
        for door, text in DOORS.items()
    )
    return "# Reference\n\n| from | what |\n|---|---|\n" + "\n".join(rows) + "\n"
