"""Models that come with spikegpt: folders in the package, found by name wherever a run is taken. Nothing writes there.

    spikegpt/shipped/NAME/   model.safetensors  config.json  tokenizer.json  manifest.json  README.md (the model card)

They are made by benchmarks/ship.py. What lies in the working directory under such a name is meant first, as it is of
every path.
"""

import difflib
from importlib import resources
from pathlib import Path

CARD = "README.md"
# what a page shows that is told of no run: the spike-driven model, and its dense twin
PAIR = "novels-5m", "novels-5m-twin"


def home() -> Path:
    """Return the folder of the models that come with spikegpt; an installation may lack it."""
    return Path(str(resources.files("spikegpt"))) / "shipped"


def shipped_names() -> list[str]:
    """Return the names of the models that are there."""
    return sorted(inside.parent.name for inside in home().glob("*/config.json"))


def shipped_folder(path: Path) -> Path | None:
    """Return the folder of the shipped model that `path` means, by its name or by its place; None if it means none."""
    if path.exists():
        return path.resolve() if path.resolve().parent == home().resolve() else None
    return home() / path if str(path) in shipped_names() else None


def is_there(path: Path) -> bool:
    """Return whether `path` is a path of something, or the name of a shipped model."""
    return path.exists() or shipped_folder(path) is not None


def shipped_near(path: Path) -> str | None:
    """Return the shipped model whose name may have been meant by `path`, which does not exist."""
    return next(iter(difflib.get_close_matches(str(path), shipped_names(), n=1)), None)


def from_everywhere(path: Path) -> Path:
    """Return a path that means the same model from every folder: the name of a shipped one, or else the absolute."""
    folder = shipped_folder(path)
    return path.absolute() if folder is None else Path(folder.name)
