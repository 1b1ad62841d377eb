"""What the whole numbers of a chip cost a trained model: bits, spikes that differ, saturations, by widths and target.

    python benchmarks/fixed_point.py RUN [RUN ...]
    python benchmarks/fixed_point.py --quick            a minute: a small model, trained for it; no published number

Each run reads the beginning of its validation text in floats and in the numbers of each of TARGETS, ranges from the
beginning of its training text. `tax` is the share of bits above the floats'.
Writes results/fixed_point.json. Last line: JSON with, by target, tax, saturations and spikes_that_differ of the last
run.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from measure import commit, write_result
from sweep import trained

from spikegpt.chip.targets import Target, target_of
from spikegpt.common.errors import SpikegptError
from spikegpt.measure.fixed_point import simulate_run

TARGETS = {
    "generic": {},
    "generic, weights 6": {"weight_bits": 6},
    "generic, weights 4": {"weight_bits": 4},
    "generic, states 20": {"state_bits": 20},
    "generic, states 16": {"state_bits": 16},
    "generic, tables of 2^5": {"table_bits": 5},
    "loihi2": {},
    "loihi2, weights 4": {"weight_bits": 4},
}
TOKENS = 16_384
QUICK = {"n_layer": 2, "n_embd": 32, "ctx_len": 64, "batch_size": 8, "steps": 60}
SHOWN = ("tax", "saturations", "spikes_that_differ")
KEPT = (
    *SHOWN,
    "bits_per_byte",
    "float_bits_per_byte",
    "saturations_by_layer",
    "target",
    "headroom_bits",
    "ranges_from",
)


def facts_of(run: Path, options) -> dict[str, dict]:
    """What each target makes of a run: name of the target -> figures."""
    found = {}
    for name in options.targets:
        result = simulate_run(run, named(name), split="valid", limit=options.tokens)
        found[name] = {key: value for key, value in result.items() if key in KEPT}
    return found


def named(name: str) -> Target:
    return target_of(name.split(",")[0], **TARGETS[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        if options.quick:
            out, options.tokens = Path(tempfile.mkdtemp()), 2048
            quick = {**QUICK, "data": ["python-docs"], "spiking": "input", "sample_every": 0, "eval_every": 0}
            trained(out, {"quick": quick}, 1, commit())
            options.runs = [out / "quick"]
        if not options.runs:
            parser.error("name a run, or more; --quick trains one")
        found = {f"{run.parent.name}/{run.name}": facts_of(run, options) for run in options.runs}
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    if not options.quick:
        write_result("fixed_point", {"tokens": options.tokens, "runs": found})
    last = list(found.values())[-1]
    print(json.dumps({name: {key: facts[key] for key in SHOWN} for name, facts in last.items()}))


if __name__ == "__main__":
    main()
