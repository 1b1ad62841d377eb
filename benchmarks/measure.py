"""What the benchmarks share: the machine in words, alternating timing, ratios with their spread, the result file."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from spikegpt.__main__ import WAITING

RESULTS = Path(__file__).parent / "results"


def machine() -> dict:
    """Return what ran the measurement: processor, cores, threads, versions; the load, for a busy one spoils timings."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def wait_as_command_line() -> None:
    """Begin this program anew unless its threads wait as those of `spikegpt` do, or as its environment says.

    How they wait is read when torch is loaded.
    """
    if not os.environ.keys() & WAITING.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WAITING})


def alternate(functions: dict[str, Callable[[], object]], repetitions: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return seconds per call of each function, called in turn, so that what else the machine does hits all of them."""
    times = {name: [] for name in functions}
    for repetition in range(warmup + repetitions):
        for name, function in functions.items():
            start = time.perf_counter()
            result = function()
            elapsed = time.perf_counter() - start
            del result
            if repetition >= warmup:
                times[name].append(elapsed)
    return times


def ratio(numerator_times: list[float], denominator_times: list[float]) -> dict:
    """Return median and quartiles of the ratio of the two, taken round by round."""
    ratios = [above / below for above, below in zip(numerator_times, denominator_times, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(quartiles[1], 3), "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)]}


def commit() -> str:
    """Return the commit of these sources."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return git.stdout.strip() if git.returncode == 0 else "uncommitted"


def write_result(name: str, payload: dict) -> Path:
    """Write results/<name>.json: `payload` with machine, commit and date."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**payload, "machine": machine(), "commit": commit(), "date": date}, indent=2) + "\n")
    return path


def end_search(name: str, summary: dict, faults: list[str], quick: bool) -> NoReturn:
    """Print the faults that a search found and its summary, keep that unless `quick`; exit with 1 if there are any."""
    summary |= {"faults": len(faults)}
    print("\n\n".join(faults).encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    if not quick:
        write_result(name, summary)
    print(json.dumps(summary))
    sys.exit(bool(faults))
