"""What models there are: those that come with spikegpt, by their cards, and the runs in a folder.

A card begins as Hugging Face's do, with YAML between two lines of three dashes: `license`, and in `model-index` the
figures of the model, of which the first text is the one that it was trained on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ..checkpoint.run import latest_checkpoint, progress_of, read_json, read_model_config
from ..checkpoint.shipped import CARD, home, shipped_names
from ..common.errors import SpikegptError
from ..common.printing import command
from ..common.tables import columns
from ..model.network import SpikeGPT

BITS, FIRING = "bits_per_byte", "firing_rate"


class Listed(NamedTuple):
    """A model in a line; None is what nobody has written down."""

    name: str
    parameters: int
    generation: str
    block: str
    """how spikes enter it: none, output or input"""
    bits_per_byte: float | None
    """of a shipped model on the test split of its text, of a run the best on valid so far"""
    firing_rate: float | None
    licence: str | None
    source: str | None
    """the text that it was trained on"""
    steps: tuple[int, int] | None
    """of a run: done, of all"""


def shipped_models() -> list[Listed]:
    """Return the models that come with spikegpt.

    Raises:
        SpikegptError: one of them is damaged.
    """
    return [_shipped(home() / name) for name in shipped_names()]


def runs_in(folder: Path) -> list[Listed]:
    """Return the runs and models in `folder`, those without a whole checkpoint too; or `folder` alone if it is one.

    Raises:
        SpikegptError: there are none, or one is damaged.
    """
    if not folder.is_dir():
        raise SpikegptError(f"{folder} is no folder; give one that holds runs, or none for what comes with spikegpt")
    inside = [folder] if (folder / "config.json").is_file() else sorted(folder.iterdir())
    found = [_run(path) for path in inside if (path / "config.json").is_file()]
    if not found:
        raise SpikegptError(f"{folder} holds no runs; train one with: {command('train', '--out', folder / 'mine')}")
    return found


def table(models: Sequence[Listed]) -> str:
    """Return `models` as text, a line each, without the columns that nobody has anything to say in."""
    cells = {
        "name": [model.name for model in models],
        "parameters": [f"{model.parameters / 1e6:.1f}M" for model in models],
        "generation": [model.generation for model in models],
        "spiking": [model.block for model in models],
        "steps": ["" if model.steps is None else f"{model.steps[0]:,} of {model.steps[1]:,}" for model in models],
        "bits/byte": ["" if model.bits_per_byte is None else f"{model.bits_per_byte:.3f}" for model in models],
        "firing": ["" if model.firing_rate is None else f"{model.firing_rate:.1%}" for model in models],
        "licence": [model.licence or "" for model in models],
        "trained on": [model.source or "" for model in models],
    }
    shown = {title: column for title, column in cells.items() if any(column)}
    return columns([list(shown), *map(list, zip(*shown.values(), strict=True))])


def read_card(path: Path) -> dict[str, Any]:
    """Return what stands at the head of a model card; nothing if there is no card.

    Raises:
        SpikegptError: it is no card.
    """
    if not path.exists():
        return {}
    try:
        _, head, _ = path.read_text(encoding="utf-8").split("---\n", 2)
        values = yaml.safe_load(head)
    except (ValueError, yaml.YAMLError) as error:
        raise SpikegptError(f"{path} is no model card: {' '.join(str(error).split())}; install spikegpt anew") from None
    if not isinstance(values, dict):
        raise SpikegptError(f"{path} is no model card: its head holds a {type(values).__name__}; install spikegpt anew")
    return values


def _shipped(folder: Path) -> Listed:
    card = read_card(folder / CARD)
    results = (card.get("model-index") or [{}])[0].get("results") or [{}]
    figures = {metric["type"]: metric["value"] for metric in results[0].get("metrics", ())}
    return _listed(
        folder,
        bits_per_byte=figures.get(BITS),
        firing_rate=figures.get(FIRING),
        licence=card.get("license"),
        source=results[0].get("dataset", {}).get("name"),
    )


def _run(folder: Path) -> Listed:
    newest = latest_checkpoint(folder, warn=lambda message: None)
    best = (read_json(newest / "training.json").get("best") or {}) if newest else {}
    train = read_json(folder / "config.json").get("train") or {}
    return _listed(
        folder,
        bits_per_byte=best.get("bits_per_byte"),
        source=", ".join(Path(text).name for text in train.get("data") or ()) or None,
        steps=(progress_of(newest) if newest else None) or ((0, train["steps"]) if "steps" in train else None),
    )


def _listed(folder: Path, **known: Any) -> Listed:
    config = read_model_config(folder / "config.json")
    with torch.device("meta"):
        parameters = SpikeGPT(config, init=False).count_parameters()
    unknown = dict.fromkeys(Listed._fields[4:])
    return Listed(folder.name, parameters, config.mixer, config.spiking, **{**unknown, **known})
