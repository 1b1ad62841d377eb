"""Measure tokenising: byte pairs with one and two processes against `tokenizers`, and the memory of a large file.

    python benchmarks/tokenising.py --data TEXT [--megabytes 1000] [--quick]

Speed: the same text, each byte of it once, and the same tokenizer, in turn; a new tokenizer each time, for ours
remembers words; the library gets the whole text as one string. Memory: `prepare` on a file of --megabytes, TEXT
repeated, in a process of its own: byte pairs are learned and the token file is written; its speed flatters, since
repeated words are known. Peak is the resident memory of that process and of its children together, looked at ten times
a second. Last line: JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import alternate, ratio, write_result

from spikegpt.data.text import Text
from spikegpt.data.tokenizers import BPETokenizer
from spikegpt.data.tokenizers.encoding import encode_text

VOCAB_SIZE = 4096


def speed(text: bytes, repetitions: int) -> dict:
    from tokenizers import Tokenizer as Library

    tokenizer = BPETokenizer.train(text, VOCAB_SIZE)
    library = Library.from_str(json.dumps(tokenizer.to_json()))
    source, string = Text.of(text), text.decode()

    def ours(processes: int) -> np.ndarray:
        # a new one has seen no words yet
        return np.concatenate([ids for _, ids in encode_text(BPETokenizer(tokenizer.to_json()), source, processes)])

    functions = {
        "one_process": lambda: ours(1),
        "two_processes": lambda: ours(2),
        "library_whole_text": lambda: library.encode(string, add_special_tokens=False).ids,
    }
    assert ours(2).tolist() == functions["library_whole_text"]()
    times = alternate(functions, repetitions)
    speeds = {
        name: [round(len(text) / 1e6 / seconds, 2) for seconds in sorted(measured)] for name, measured in times.items()
    }
    return {
        "megabytes": round(len(text) / 1e6, 1),
        "megabytes_per_s_median": {name: values[len(values) // 2] for name, values in speeds.items()},
        "megabytes_per_s_all": speeds,
        # of all processes together: on a busy machine the fairer figure
        "megabytes_per_cpu_s": {
            name: round(len(text) / 1e6 / cpu_seconds(function), 2) for name, function in functions.items()
        },
        "two_processes_over_library": ratio(times["library_whole_text"], times["two_processes"]),
        "two_processes_over_one": ratio(times["one_process"], times["two_processes"]),
    }


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call, with that of child processes that ended in it."""
    before = os.times()
    function()
    return sum(os.times()[:4]) - sum(before[:4])


def memory(text: bytes, megabytes: int, processes: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.txt"
        with large.open("wb") as file:
            while file.tell() < megabytes * 1_000_000:
                file.write(text)
        arguments = f"{str(large)!r}, 'bpe', Path({folder!r}), {VOCAB_SIZE}, processes={processes}"
        code = f"from pathlib import Path; from spikegpt.data.prepare import prepare; prepare({arguments})"
        start, peak = time.perf_counter(), 0
        child = subprocess.Popen([sys.executable, "-c", code])
        while child.poll() is None:
            peak = max(peak, resident_bytes(child.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if child.returncode:
            raise SystemExit("prepare failed; its message stands above")
        tokens = next(Path(folder).glob("*.tokens")).stat().st_size
        return {
            "file_megabytes": round(large.stat().st_size / 1e6, 1),
            "processes": processes,
            "peak_megabytes": round(peak / 1e6, 1),
            "seconds": round(seconds, 1),
            "megabytes_per_s": round(large.stat().st_size / 1e6 / seconds, 2),
            "token_file_megabytes": round(tokens / 1e6, 1),
        }


def resident_bytes(pid: int) -> int:
    """Memory of a process and all below it, as Linux counts it; shared pages count once per process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        # it ended meanwhile
        return 0
    return pages * 4096 + sum(map(resident_bytes, children))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a text file of some megabytes")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the large file")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="3 repetitions, and a file of 50 MB")
    options = parser.parse_args()
    text = options.data.read_bytes()
    needed = options.megabytes * 2_000_000
    if shutil.disk_usage(tempfile.gettempdir()).free < needed:
        raise SystemExit(f"{tempfile.gettempdir()} has less than {needed / 1e9:.1f} GB free; give fewer --megabytes")
    result = {
        "vocab_size": VOCAB_SIZE,
        "speed": speed(text, 3 if options.quick else options.repetitions),
        "memory": memory(text, 50 if options.quick else options.megabytes, 2),
    }
    print(json.dumps(result, indent=1))
    if not options.quick:
        write_result("tokenising", {"data": options.data.name, **result})
    print(
        json.dumps({**result["speed"]["megabytes_per_s_median"], "peak_megabytes": result["memory"]["peak_megabytes"]})
    )


if __name__ == "__main__":
    main()
