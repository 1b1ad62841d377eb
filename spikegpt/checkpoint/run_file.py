"""run.yaml, which lies beside every run: what `train --config` takes to train it once more, and people to change it.

    from: runs/mine-twin                                  # weights to begin with; or what all else is taken from:
    preset: small
    model: {n_layer: 6, neuron: {levels: 2}}
    train: {data: [my_texts], steps: 5000}

Only YAML 1.2's core: text, numbers, true, false, null, lists and dictionaries. `no` is text, 1e-3 a number.
"""

import re
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from ..common.errors import SpikegptError
from ..common.files import write_atomically
from ..common.printing import command
from ..config import ModelConfig, TrainConfig, known_keys

NAME = "run.yaml"


class RunFile(NamedTuple):
    """What stands in a file; names and values of `model` and `train` are checked when they become configurations."""

    preset: str | None
    start: Path | None
    model: dict[str, Any]
    train: dict[str, Any]


def write_run_file(run: Path, model: ModelConfig, train: TrainConfig, start: str | None) -> None:
    """Write RUN/run.yaml; OSError if that fails. Neurons of one's own are not in it."""
    again = command("train", "--config", run / NAME, "--out", f"{run}-again")
    values = {**({"from": start} if start else {}), "model": model.to_dict(), "train": train.to_dict()}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    write_atomically(run / NAME, f"# {again}\n{text}")


def read_run_file(path: Path) -> RunFile:
    """Return what the file `path` says.

    Raises:
        SpikegptError: it cannot be read, is no YAML, or holds a key that is none of these.
    """
    try:
        # the loader is a SafeLoader: it makes plain values only
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SpikegptError(f"cannot read {path}: {error}; give the {NAME} of a run, or one like it") from None
    except yaml.YAMLError as error:
        raise SpikegptError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise SpikegptError(f"{path} holds a {type(found).__name__}; wanted are the keys model and train, see {NAME}")
    try:
        known_keys(str(path), found, ("preset", "from", "model", "train"))
    except ValueError as error:
        raise SpikegptError(str(error)) from None
    for key, kind in {"preset": str, "from": str, "model": dict, "train": dict}.items():
        if found.get(key) is not None and not isinstance(found[key], kind):
            wanted = "settings, a NAME: VALUE in each line" if kind is dict else "some text"
            raise SpikegptError(f"{path}: {key} must be {wanted}, got {found[key]!r}")
    start = found.get("from")
    return RunFile(found.get("preset"), start and Path(start), found.get("model") or {}, found.get("train") or {})


class _PlainLoader(yaml.SafeLoader):
    """YAML 1.2's core schema: PyYAML's own, 1.1, makes False of `no` and text of 1e-3. A key comes once."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


for _tag, _pattern in {
    "null": r"null|~|",
    "bool": r"true|false",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
}.items():
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)
