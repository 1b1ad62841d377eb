"""A run as the server shows it: its model, what is known of it, its training curve and its report."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.run import configs_of, progress_of, read_run_config, results_folder, run_of
from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..config import ServeConfig
from .operations import dense_macs, synapses
from .refusals import Refused
from .scheduler import Scheduler

# of metrics.jsonl, at a time
CURVE_BYTES = 1 << 20
HALVES = {"att": "time mix", "ffn": "channel mix", "": "head"}


class ServedRun:
    """A run with its model loaded.

    Raises:
        SpikegptError: nothing whole is there.
    """

    def __init__(self, name: str, path: Path, limits: ServeConfig, device: str):
        self.name, self.path, self.folder = name, path, run_of(path) or path
        self._report = results_folder(path) / "report" / "report.html"
        self.model, self.tokenizer = load_model(path, device=device)
        self.scheduler = Scheduler(self.model, self.tokenizer, limits)
        self.synapses, self.dense_macs = synapses(self.model), dense_macs(self.model)
        # the binary embedding is no layer of neurons
        self.layers = tuple(self.model.sites())

    def facts(self) -> dict[str, Any]:
        """Return what the page shows of the model and needs in order to read its spikes."""
        config, placed = self.model.config, self.model.sites()
        return {
            "name": self.name,
            "block": config.spiking,
            "mixer": config.mixer,
            "n_layer": config.n_layer,
            "n_embd": config.n_embd,
            "parameters": self.model.count_parameters(),
            "dense_macs": self.dense_macs,
            "layers": [
                {
                    "name": name,
                    "block": placed[name].block,
                    "half": HALVES[placed[name].half] if placed[name].half or placed[name].block is None else "",
                    "site": placed[name].site.name.removesuffix("_neuron").replace("_", " "),
                    "channels": placed[name].site.channels,
                    "synapses": self.synapses.get(name, 0),
                }
                for name in self.layers
            ],
            "has_report": self._report.is_file(),
            "has_curve": (self.folder / "metrics.jsonl").is_file(),
        }

    def report(self) -> bytes:
        """Return the page of the run's report; Refused with 404 if there is none."""
        try:
            return self._report.read_bytes()
        except OSError:
            raise Refused(404, f"{self.name} has no report; write one with: spikegpt measure RUN") from None

    def curve(self, after: int) -> dict[str, Any]:
        """Return the points of the training curve behind byte `after` of metrics.jsonl, and where to go on.

        `is_anew`: the file is shorter than `after`, so that all points are there again.
        """
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("rb") as file:
                is_anew = after > path.stat().st_size
                start = file.seek(0 if is_anew else after)
                content = file.read(CURVE_BYTES)
        except OSError:
            raise Refused(
                404, f"{self.name} has no training curve: it is no run, or its metrics.jsonl is gone"
            ) from None
        # the last line may be half written
        whole = content[: content.rfind(b"\n") + 1]
        return {"points": list(_points(whole)), "next": start + len(whole), "is_anew": is_anew, "steps": self._steps()}

    def _steps(self) -> int | None:
        """How many steps the training takes in all; None where nothing says so."""
        try:
            return configs_of(self.folder, read_run_config(self.folder))[1].steps
        except SpikegptError:
            progress = progress_of(self.path)
            return None if progress is None else progress[1]


def _points(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and values.get("kind") in ("train", "valid") and "bits_per_byte" in values:
            yield {name: values.get(name) for name in ("step", "kind", "bits_per_byte", "firing_rate")}


def load_runs(paths: Sequence[Path], limits: ServeConfig, device: str) -> dict[str, ServedRun]:
    """Return name -> run. A run goes by the name of its folder, a checkpoint by its run's and its own."""
    runs: dict[str, ServedRun] = {}
    for path in paths:
        name, number = _name_of(path), 2
        while name in runs:
            name, number = f"{_name_of(path)}-{number}", number + 1
        runs[name] = ServedRun(name, path, limits, device)
    return runs


def _name_of(path: Path) -> str:
    run, own = run_of(path), path.resolve().name
    return own if run is None or run.resolve() == path.resolve() else f"{run.resolve().name}-{own}"
