"""A run in the whole numbers of a chip, beside itself in floats: bits, spikes that differ, saturations, cores, prices.

The arithmetic is the wing `chip`'s; here it reads a run's text. What it computed: integer_counts.py.
"""

import dataclasses
import sys
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from neuromorphic import Profile, estimate

from ..checkpoint.run import run_of
from ..checkpoint.weights import load_model
from ..chip.making import make_program
from ..chip.placement import placement
from ..chip.reader import IntegerReader
from ..chip.targets import Target
from ..common.errors import SpikegptError, warn_on_stderr
from ..common.printing import one_line
from ..common.tables import columns
from ..evaluate.perplexity import evaluate_stream, named_if_not_finite
from ..evaluate.runs import read_text
from ..model.network import ModelOutput
from .integer_counts import tally_of

# what decides the ranges of all numbers
CALIBRATION_TOKENS = 4096


def simulate_run(
    run: Path,
    target: Target,
    *,
    headroom_bits: int = 2,
    split: str = "test",
    file: Path | None = None,
    limit: int | None = None,
    profiles: Sequence[Profile] = (),
    cache: Path | None = None,
) -> dict[str, Any]:
    """Return what the numbers of `target` make of the model in `run`, on a text, as plain values.

    The ranges are those of the beginning of the run's training text; of a model without one, of the text itself.

    Args:
        split, file, limit: the text, as in `evaluate.read_text`.
        profiles: price tables; their widths of weights and states are replaced by the target's.

    Raises:
        SpikegptError: no whole run, no text, or a model whose arithmetic is not known; the reason is named.
    """
    model, tokenizer = load_model(run)
    tokens, source = read_text(run, tokenizer, split=split, file=file, limit=limit, cache=cache)
    calibration, ranges_from = tokens[:CALIBRATION_TOKENS], "the beginning of the text itself"
    if run_of(run) is not None:
        try:
            calibration = read_text(run, tokenizer, split="train", limit=CALIBRATION_TOKENS, cache=cache)[0]
            ranges_from = "the beginning of its training text"
        except SpikegptError as error:
            if file is None:
                raise
            warn_on_stderr(f"{error}; ranges are those of {file} itself, which then saturates less")
    program = make_program(model, calibration, target, headroom_bits)
    print(one_line(f"simulating {run} on {source}: {len(tokens):,} tokens"), file=sys.stderr, flush=True)
    reader, nats, position = IntegerReader(program), 0.0, 0
    differing: dict[str, int] = {}

    def compare(ids: Tensor, output: ModelOutput) -> None:
        nonlocal nats, position
        T = ids.shape[1]
        reading = reader.read(ids[0].numpy())
        targets = torch.from_numpy(tokens[position + 1 : position + 1 + T].astype(np.int64))
        nats += F.cross_entropy(reading.logits, targets, reduction="sum").item()
        position += T
        for name, ours in reading.spikes.items():
            differing[name] = differing.get(name, 0) + int((output.spikes[name][0].numpy() != ours).sum())

    with named_if_not_finite(run):
        in_floats = evaluate_stream(model, tokens, tokenizer, watch=compare)
    bits = nats / log(2) / in_floats.bytes
    tally = tally_of(model.config, program, reader)
    estimates = [
        estimate(tally, dataclasses.replace(profile, weight_bits=target.weight_bits, state_bits=target.state_bits))
        for profile in profiles
    ]
    neurons = {name: len(fired) * reader.tokens_read for name, fired in reader.fired.items()}
    saturations = reader.saturations()
    return {
        "run": str(run),
        "text": source,
        "tokens": reader.tokens_read,
        "target": {name: value for name, value in vars(target).items() if name != "cores"},
        "headroom_bits": headroom_bits,
        "ranges_from": ranges_from,
        "bits_per_byte": bits,
        "float_bits_per_byte": in_floats.bits_per_byte,
        "tax": bits / in_floats.bits_per_byte - 1,
        "spikes_that_differ": sum(differing.values()) / sum(neurons.values()),
        "spikes_that_differ_by_site": {name: count / neurons[name] for name, count in differing.items()},
        "firing_rates": {name: int(fired.sum()) / neurons[name] for name, fired in reader.fired.items()},
        "float_firing_rates": in_floats.firing_rates,
        "saturations": sum(count for cut in saturations.values() for count in cut.values()),
        "saturations_by_layer": saturations,
        "placement": placement(model.config, target),
        "energy": [found.to_dict() for found in estimates],
    }


def table(result: dict[str, Any]) -> str:
    """Return the result of `simulate_run` as text."""
    target, place = result["target"], result["placement"]
    rounded = "the nearest" if target["rounding"] == "nearest" else "0"
    need, chip = place["need"], place["chip"]
    rows = [
        ["run", result["run"]],
        ["text", f"{result['text']}, {result['tokens']:,} tokens; ranges: {result['ranges_from']}"],
        [
            "numbers",
            f"{target['name']}: weights {target['weight_bits']} bits, one exponent per {target['exponent_of']}; "
            f"states {target['state_bits']} bits, rounded to {rounded}; "
            f"tables of {2 ** target['table_bits'] + 1} entries",
        ],
        [
            "bits per byte",
            f"{result['bits_per_byte']:.4f}, in floats {result['float_bits_per_byte']:.4f}: {result['tax']:+.2%}",
        ],
        ["spikes that differ", f"{result['spikes_that_differ']:.2%}"],
        *_by_site(result),
        ["saturations", f"{result['saturations']:,}"],
    ]
    for layer, cut in result["saturations_by_layer"].items():
        rows.append([f"  {layer}", ", ".join(f"{quantity} {count:,}" for quantity, count in cut.items())])
    rows.append(["on a chip", f"{need['neurons']:,} neurons, {need['synapses']:,} synapses, {need['bytes']:,} bytes"])
    if chip is not None:
        rows.append(["  cores", f"{chip['cores_needed']} of {chip['cores']}, each product on its own; packed "
                     f"{chip['cores_at_least']}, filled first by {chip['filled_first']}"])  # fmt: skip
    rows += [["  does not fit", sentence] for sentence in place["does_not_fit"]]
    rows += [["  not by synapses", sentence] for sentence in place["host_and_programs"]]
    for found in result["energy"]:
        mark = "> " if found["unpriced"] else ""
        ends = ("low_pj", "central_pj", "high_pj")
        low, central, high = ("-" if found[end] is None else f"{found[end] / 1e6:,.3g}" for end in ends)
        rows.append([f"estimate, {found['profile']}", f"{mark}{central} uJ per token ({low} to {high})"])
    return columns(rows)


def _by_site(result: dict[str, Any]) -> list[list[str]]:
    """A row for each kind of site: the mean over the layers, and the layer that differs most."""
    kinds: dict[str, dict[str, float]] = {}
    for name, share in result["spikes_that_differ_by_site"].items():
        kinds.setdefault(name.split(".", 2)[-1], {})[name] = share
    rows = []
    for kind, shares in kinds.items():
        most = max(shares, key=lambda name: shares[name])
        rows.append([f"  {kind}", f"{sum(shares.values()) / len(shares):.2%}, most {shares[most]:.2%} at {most}"])
    return rows
