"""Train many configurations, one beside another on the cores that are there, and set them side by side.

    python benchmarks/sweep.py OUT sweep.toml                      a [[run]] table for each configuration
    python benchmarks/sweep.py OUT --grid lr=1e-3,2e-3 seed=0,1    each value with each, and with each run of a file
    python benchmarks/sweep.py OUT sweep.toml --list               what would run, and what of it is done

A configuration is flags of `spikegpt train`, in TOML (name = "dense", preset = "small", lr = 2e-3) or as one JSON
object per line of a .jsonl file. Each is a run folder OUT/NAME, and OUT/NAME.log says what it said. OUT/results.jsonl
has a line for each that ended, in that order: name, configuration, step, bits per byte on valid, firing rate, tokens/s,
seconds of the last start, commit; or `error`. Ctrl-C and SIGTERM end the trainings, which save; so does whatever else
ends this program. Called again with the same OUT it goes on: what is done stays, what was broken off goes
on, what failed is tried again. Exit status: 0; 1 if any failed; 130 or 143 after a signal. One thread each, and one
precision for all that are compared, bf16 where the machine multiplies it, unless `threads` and `precision` say
otherwise.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spikegpt.common.errors import SpikegptError
from spikegpt.common.files import locked, write_atomically
from spikegpt.common.tables import columns
from spikegpt.config import ModelConfig, NeuronConfig, TrainConfig, model_preset, train_preset
from spikegpt.train.journal import read_metrics
from spikegpt.train.precision import multiplies_bfloat16
from spikegpt.train.stop_signals import StopSignals, exit_status

# `spikegpt`, asked to stop when its standard input ends: when the sweep closes it, or is gone, however it went.
# Not through sys.stdin, whose lock this thread would hold when the interpreter ends
CHILD = """
import os, runpy, signal, threading
def listen():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=listen, daemon=True).start()
runpy.run_module("spikegpt", run_name="__main__", alter_sys=True)
"""
# flag of `spikegpt train`, with underscores -> value; and a line of results.jsonl
Configuration = Result = dict[str, Any]


class Running(NamedTuple):
    """A training under way: its process, where in its log it begins, and when it began."""

    name: str
    process: subprocess.Popen
    log: Path
    log_begins: int
    started: float


def read_configurations(file: Path | None, grid: list[str]) -> dict[str, Configuration]:
    """Return name -> configuration: those of a file, each with each choice of the grid.

    Raises:
        SpikegptError: the file or the grid cannot be read, or two have one name.
    """
    axes, found = [_axis(word) for word in grid], dict[str, Configuration]()
    for given in _read(file) if file else [{}]:
        for choice in map(dict, itertools.product(*axes)):
            # flags may be written as the command line has them
            all_given = {key.replace("-", "_"): value for key, value in (given | choice).items()}
            configuration = {key: value for key, value in all_given.items() if key != "name"}
            own, parts = ([str(given["name"])], choice) if "name" in given else ([], configuration)
            words = own + [f"{key}={value}" for key, value in parts.items()]
            # what a folder may be called everywhere
            name = re.sub(r"[^\w.=+-]+", "-", "_".join(words)).strip("-.")
            if not name or name in found:
                raise SpikegptError(f"a configuration is called {name!r}, and is not the only one; give each a name")
            found[name] = configuration
    return found


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        return tomllib.loads(text)["run"] if file.suffix == ".toml" else list(map(json.loads, text.splitlines()))
    except (OSError, ValueError, KeyError) as error:
        wanted = "want [[run]] tables in a .toml file, or a JSON object per line"
        raise SpikegptError(f"{file}: {error}; {wanted}") from None


def _axis(word: str) -> list[tuple[str, Any]]:
    """[(KEY, VALUE), ...] of KEY=VALUE,VALUE; what is no JSON is a string."""
    key, _, values = word.partition("=")
    if not key or not values:
        raise SpikegptError(f"--grid wants KEY=VALUE,VALUE, got {word!r}")
    found: list[tuple[str, Any]] = []
    for text in values.split(","):
        try:
            found.append((key, json.loads(text)))
        except ValueError:
            found.append((key, text))
    return found


def check(configuration: Configuration) -> None:
    """Raise ValueError unless this is a configuration; what depends on files is the training's to see."""
    preset = configuration.get("preset", "tiny")
    rest = {key: value for key, value in configuration.items() if key not in ("preset", "from")}
    model, neuron = (
        {item.name: rest.pop(item.name) for item in dataclasses.fields(kind) if item.name in rest}
        for kind in (ModelConfig, NeuronConfig)
    )
    defaults = train_preset(preset).to_dict()
    for key, value in rest.items():
        # one of many, as in --data FILE
        if isinstance(defaults.get(key), list | tuple) and not isinstance(value, list):
            rest[key] = [value]
    TrainConfig.from_dict({**defaults, **rest})
    if "from" not in configuration:
        dataclasses.replace(model_preset(preset, **model).neuron, **neuron)


def words_of(configuration: Configuration) -> list[str]:
    """Return the flags of `spikegpt train` that a configuration stands for."""
    # where each measured it for itself, a busy moment would make two kinds of them
    words = ["--threads", "1", "--precision", "bf16" if multiplies_bfloat16(torch.device("cpu")) else "no"]
    for key, value in configuration.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words


def keep_configurations(out: Path, configurations: dict[str, Configuration]) -> None:
    """Write down what each name stands for; SpikegptError if a run was begun under it that stands for another."""
    path = out / "configurations.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, configuration in configurations.items():
        if known.get(name, configuration) != configuration and (out / name / "config.json").exists():
            raise SpikegptError(
                f"{out / name} was begun as {json.dumps(known[name])}, now {name} is {json.dumps(configuration)}; "
                "give it another name, or another OUT"
            )
    write_atomically(path, json.dumps(known | configurations, indent=1))


def read_results(out: Path) -> dict[str, Result]:
    path = out / "results.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return {line["name"]: line for line in lines}


def is_free(run: Path) -> bool:
    """Whether no process holds `run`; one that a killed sweep left behind may still write its last checkpoint."""
    try:
        with locked(run):
            return True
    except SpikegptError:
        return False


def start(out: Path, name: str, configuration: Configuration, more: list[str]) -> Running:
    """Begin or go on with a training."""
    run, log = out / name, out / f"{name}.log"
    # one killed before it wrote its configuration has nothing to go on from
    is_begun = (run / "config.json").exists()
    words = ["train", *(["--resume", str(run)] if is_begun else [*words_of(configuration), "--out", str(run)]), *more]
    with log.open("a", encoding="utf-8") as file:
        begins = file.tell()
        print(f"--- spikegpt {shlex.join(words)}", file=file, flush=True)
        # a session of its own: Ctrl-C in a terminal reaches the sweep alone, and the training once
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *words],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Running(name, process, log, begins, time.monotonic())


def facts_of(ended: Running, run: Path) -> Result:
    """Return what a training came to, from its own records; or `error`."""
    if status := ended.process.returncode:
        said = ended.log.read_bytes()[ended.log_begins :].decode(errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        return {"error": errors[-1] if errors else f"ended with status {status}; see {ended.log}"}
    records = read_metrics(run)
    valid = [record for record in records if record["kind"] == "valid"][-1]
    pace = statistics.median(record["tokens_per_s"] for record in records if record["kind"] == "train")
    return {name: valid[name] for name in ("step", "bits_per_byte", "firing_rate")} | {"tokens_per_s": round(pace)}


def sweep(out: Path, configurations: dict[str, Configuration], at_once: int, more: list[str], commit: str) -> int:
    """Train what is not done yet, at most `at_once` at a time; return the signal that ended it, 0 if none did."""
    results, running = read_results(out), list[Running]()

    def keep(name: str, facts: Result) -> None:
        # what failed before has now ended later
        results.pop(name, None)
        results[name] = {"name": name, "configuration": configurations[name], **facts, "commit": commit}
        write_atomically(out / "results.jsonl", "".join(json.dumps(line) + "\n" for line in results.values()))
        print(f"{name}: {in_words(results[name])}", flush=True)

    waiting = [name for name in configurations if "error" in results.get(name, {"error": "not begun"})]
    for name in list(waiting):
        try:
            check(configurations[name])
        except ValueError as error:
            waiting.remove(name)
            keep(name, {"error": str(error)})
    with StopSignals() as signals:
        while running or (waiting and not signals.asked):
            for name in list(waiting):
                if len(running) < at_once and not signals.asked and is_free(out / name):
                    waiting.remove(name)
                    running.append(start(out, name, configurations[name], more))
            for one in list(running):
                if signals.asked:
                    one.process.stdin.close()
                if one.process.poll() is not None:
                    running.remove(one)
                    # what was asked to stop goes on next time
                    if one.process.returncode == 0 or not signals.asked:
                        seconds = round(time.monotonic() - one.started, 1)
                        keep(one.name, {**facts_of(one, out / one.name), "seconds": seconds})
            time.sleep(0.1)
    return signals.number or 0


def trained(out: Path, configurations: dict[str, Configuration], at_once: int, commit: str) -> dict[str, Result]:
    """Train what is not done yet, and return name -> result; leave by SystemExit if that ends early or any fails."""
    with locked(out):
        keep_configurations(out, configurations)
        if signal := sweep(out, configurations, at_once, [], commit):
            print("interrupted; the same command goes on", file=sys.stderr)
            sys.exit(exit_status(signal))
        results = read_results(out)
    for name in configurations:
        if "error" in results[name]:
            sys.exit(f"error: {name}: {results[name]['error']}")
    return results


def in_words(result: Result) -> str:
    if "error" in result:
        return f"error: {result['error']}"
    firing = "dense" if result["firing_rate"] is None else f"firing {result['firing_rate']:.2%}"
    return f"{result['bits_per_byte']:.4f} bits/byte  {firing}  {result['tokens_per_s']:,} tokens/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs and of results.jsonl")
    parser.add_argument("file", type=Path, nargs="?", help="configurations, .toml or .jsonl")
    parser.add_argument("--grid", nargs="+", default=[], metavar="KEY=VALUE,VALUE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at once, by default one per core")
    parser.add_argument("--cache", help="where token files are kept")
    parser.add_argument("--list", action="store_true", help="only show what would run")
    options = parser.parse_args()
    if not options.file and not options.grid:
        parser.error("give a file of configurations, or --grid")
    try:
        configurations, stopped = read_configurations(options.file, options.grid), 0
        if not options.list:
            from measure import commit

            more = ["--cache", options.cache] if options.cache else []
            with locked(options.out):
                keep_configurations(options.out, configurations)
                stopped = sweep(options.out, configurations, max(options.jobs, 1), more, commit())
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    results = read_results(options.out)
    # the best first
    order = sorted(configurations, key=lambda name: results.get(name, {}).get("bits_per_byte", math.inf))
    outcomes = [in_words(results[name]) if name in results else "not done" for name in order]
    flags = [[shlex.join(words_of(configurations[name]))] if options.list else [] for name in order]
    print(columns([[name, outcome, *rest] for name, outcome, rest in zip(order, outcomes, flags, strict=True)]))
    has_failed = any("error" in results.get(name, {}) for name in configurations)
    sys.exit(exit_status(stopped) if stopped else int(has_failed and not options.list))


if __name__ == "__main__":
    main()
