"""The generations of RWKV beside each other, dense and spike-driven: equal parameters, equal tokens.

    python benchmarks/family.py --data NOVELS                     2.0M, 2,000 steps of 16 x 128 (4M tokens), three seeds
    python benchmarks/family.py --data NOVELS --steps 8000 --seeds 0      16M tokens
    python benchmarks/family.py --data NOVELS --long              windows of 512 tokens; bits by position, to 8,192
    python benchmarks/family.py --quick                           a minute, the built-in corpus, no published number

Every mixer that is there (MIXERS) and whose products can read spikes is trained dense, and at 19 % of those products,
in 4 layers of the width whose parameters come nearest to RWKV-4's at 192, within ALLOWED; each side by its own recipe
(SIDES, RECIPES). One that fits in no width is left out, and that is said. One thread each, `--jobs` at once; what
exists is kept, what was broken off goes on.

Bits, firing and operations are those of tax.py: of the whole valid split, read once with carried state. Operations per
token: of weights, products as built (head included); of the state, what its operators do; elementwise, all else.
Decoding is in the engine, one text, one thread, all in turn; the pace of training is that of its log. Writes
results/family.json (family_16m.json and so on for other numbers of tokens; with --long family_long.json). Last line:
JSON with, by mixer, dense_bits, spiking_bits, tax, firing, operations, state_bytes, tokens_per_s.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from decoders import decoder
from measure import alternate, commit, write_result
from sweep import Configuration, Result, trained
from tax import COMPARED, DENSE, SEEDS, SIZES, STEPS, STUDENT, evaluate
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.prepare import prepare
from spikegpt.generate.engine import Engine
from spikegpt.model.mixers import MIXERS
from spikegpt.model.network import SpikeGPT, parameters_of

SIDES: dict[str, Configuration] = {"dense": DENSE, "spiking": {**STUDENT, "synop_budget": COMPARED}}
# mixer -> what is its own: the shape of its models, and on each side what is not as in SIDES
SHAPES: dict[str, Configuration] = {
    # with the published ranks a width of 192 has 5 % more parameters than RWKV-4's, the next lower one far fewer
    "rwkv7": {"head_size": 32, "lora_ranks": [24, 24, 16, 32]},
}
RECIPES: dict[str, dict[str, Configuration]] = {}
ALLOWED = 0.02
# the same tokens a step as of SIZES["2.0M"]
LONG = {"ctx_len": 512, "batch_size": 4}
# in heads of any size
QUICK = {**SIZES["quick"], "n_embd": 64}
# tokens of a text whose bits are taken by position, most texts, tokens read at once, and positions that belong together
LONG_TEXT, LONG_TEXTS, CHUNK = 8192, 32, 512
POSITIONS = (0, 128, 256, 512, 1024, 2048, 4096, LONG_TEXT)
TURNS = 15
DECODED = b"It was the best of times, it was the worst of times, " * 5


def fitting_mixers(
    mixers: list[str], sizes: Configuration, allowed: float
) -> tuple[dict[str, Configuration], dict[str, str]]:
    """Return ({mixer: shape of its models}, {mixer: why it is left out})."""
    shape = {name: sizes[name] for name in ("n_layer", "ctx_len")}
    wanted = parameters_of(ModelConfig(n_embd=sizes["n_embd"], spiking="none", **shape))
    found, left_out = {}, {}
    for mixer in mixers:
        own = {"mixer": mixer, **SHAPES.get(mixer, {})}
        step = own.get("head_size", ModelConfig.head_size)
        of_width = [{**shape, **own, "n_embd": width} for width in range(step, 2 * sizes["n_embd"] + step, step)]
        try:
            has = {
                dense["n_embd"]: parameters_of(ModelConfig.from_dict({**dense, "spiking": "none"}))
                for dense in of_width
            }
            with torch.device("meta"):
                spiking = SpikeGPT(ModelConfig.from_dict({**of_width[0], "spiking": "input"}), init=False)
        except ValueError as error:
            left_out[mixer] = str(error)
            continue
        nearest = min(has, key=lambda width: abs(has[width] - wanted))
        if not spiking.synapses():
            left_out[mixer] = "no product of it reads spikes"
        elif abs(has[nearest] / wanted - 1) > allowed:
            said = f"its nearest width, {nearest}, has {has[nearest]:,} parameters, {wanted:,} are wanted"
            left_out[mixer] = f"{said}; give it another head_size or other ranks in SHAPES"
        else:
            found[mixer] = {**own, "n_embd": nearest}
    return found, left_out


def configurations(options: argparse.Namespace, shapes: dict[str, Configuration]) -> dict[str, Configuration]:
    """Return what is to be trained, by the name MIXER-SIDE-SEED."""
    always = {"data": options.data, "sample_every": 0, "eval_every": 0, "keep": 1, "steps": options.steps}
    found = {}
    for mixer, shape in shapes.items():
        for side, recipe in SIDES.items():
            own = RECIPES.get(mixer, {}).get(side, {})
            for seed in options.seeds:
                found[f"{mixer}-{side}-{seed}"] = {**options.sizes, **always, "seed": seed, **shape, **recipe, **own}
    return found


@torch.inference_mode()
def bits_by_position(model: SpikeGPT, tokens: np.ndarray) -> dict[str, float]:
    """Return {"FROM-BELOW": bits per token there}, of texts that each begin with an empty state.

    Raises:
        SpikegptError: there is not one text of LONG_TEXT tokens.
    """
    texts = min((len(tokens) - 1) // LONG_TEXT, LONG_TEXTS)
    if not texts:
        raise SpikegptError(f"the valid split has {len(tokens):,} tokens, --long needs {LONG_TEXT + 1:,}")
    ids = torch.from_numpy(tokens[: texts * LONG_TEXT + 1].astype(np.int64))
    inputs, targets = ids[:-1].view(texts, LONG_TEXT), ids[1:].view(texts, LONG_TEXT)
    nats, state = [], None
    for read, following in zip(inputs.split(CHUNK, dim=1), targets.split(CHUNK, dim=1), strict=True):
        logits, state, _ = model(read, state)
        nats.append(F.cross_entropy(logits.transpose(1, 2), following, reduction="none").mean(dim=0))
    bits = torch.cat(nats) / math.log(2)
    return {f"{start}-{end}": bits[start:end].mean().item() for start, end in itertools.pairwise(POSITIONS)}


def examine(run: Path, data: list[str], is_long: bool) -> dict:
    """Return what `tax.evaluate` does, the bytes of a text's state and, if `is_long`, bits by position; all is kept."""
    facts = evaluate(run, data)
    kept = run.parent / f"{run.name}.state.json"
    if not kept.exists():
        model, tokenizer = load_model(run)
        with torch.inference_mode():
            state = model(torch.zeros(1, 1, dtype=torch.long)).state
        more: dict = {"state_bytes": sum(part.nbytes for part in tree_leaves(state) if part is not None)}
        if is_long:
            more["bits_by_position"] = bits_by_position(model, np.asarray(prepare(data, tokenizer).split("valid")))
        kept.write_text(json.dumps(more))
    return facts | json.loads(kept.read_text())


def decoding(runs: list[Path], turns: int) -> dict[str, float]:
    """Return name of a run -> tokens per second in the engine, one text, one thread."""
    torch.set_num_threads(1)
    contenders, tokens = {}, {}
    for run in runs:
        model, tokenizer = load_model(run)
        ids = np.asarray(tokenizer.encode(DECODED), dtype=np.int64)
        contenders[run.name], tokens[run.name] = decoder(Engine(model), model, ids), len(ids)
    times = alternate(contenders, turns)
    return {name: round(tokens[name] / statistics.median(seconds)) for name, seconds in times.items()}


def summarise(found: dict[str, dict], results: dict[str, Result], decoded: dict[str, float], seeds: list[int]) -> dict:
    """Return by mixer what its runs come to: means over the seeds; decoding is of the first."""

    def side_of(mixer: str, side: str) -> dict:
        names = [f"{mixer}-{side}-{seed}" for seed in seeds]
        runs, first = [found[name] for name in names], found[names[0]]

        def mean(what: str) -> float:
            return statistics.mean(run[what] for run in runs)

        weights, others = mean("macs") + mean("acs"), {kind: mean(kind) for kind in ("state", "elementwise")}
        training = statistics.mean(results[name]["tokens_per_s"] for name in names)
        positions = [run["bits_by_position"] for run in runs if "bits_by_position" in run]
        return {
            "bits": mean("bits"),
            "firing": None if first["firing"] is None else mean("firing"),
            "parameters": first["parameters"],
            "operations": {"weights": weights, **others},
            "state_bytes": first["state_bytes"],
            "tokens_per_s": {"decoding": decoded[names[0]], "training": round(training)},
            "bits_by_position": {
                place: statistics.mean(bits[place] for bits in positions) for place in (positions or [{}])[0]
            },
        }

    summary = {}
    for mixer in dict.fromkeys(name.rsplit("-", 2)[0] for name in found):
        sides = {side: side_of(mixer, side) for side in SIDES}
        bits = {side: facts.pop("bits") for side, facts in sides.items()}
        by_side = {what: {side: sides[side][what] for side in SIDES} for what in sides["dense"]}
        summary[mixer] = {
            **{f"{side}_bits": bits[side] for side in SIDES},
            "tax": bits["spiking"] / bits["dense"] - 1,
            **by_side,
            "firing": sides["spiking"]["firing"],
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=list(MIXERS))
    parser.add_argument("--steps", type=int, help="of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--long", action="store_true", help="train in windows of 512 tokens, take bits by position")
    parser.add_argument("--runs", type=Path, help="by default runs/family-STEPS, or runs/family-long-STEPS")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.sizes, options.steps = SIZES["2.0M"], options.steps or STEPS["quick" if options.quick else "2.0M"]
    if options.quick:
        options.sizes, options.seeds, options.runs = QUICK, [0], Path(tempfile.mkdtemp())
    name = "family_long" if options.long else "family"
    if options.long:
        options.sizes = {**options.sizes, **LONG}
    out = (options.runs or Path(f"runs/{name.replace('_', '-')}-{options.steps}")).absolute()
    options.data = [str(Path(given).absolute()) if Path(given).exists() else given for given in options.data]
    shapes, left_out = fitting_mixers(options.mixers, options.sizes, math.inf if options.quick else ALLOWED)
    for mixer, why in left_out.items():
        print(f"{mixer} is left out: {why}", flush=True)
    runs = configurations(options, shapes)
    try:
        results = trained(out, runs, options.jobs, commit())
        with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            facts = pool.map(examine, *zip(*((out / run, options.data, options.long) for run in runs), strict=True))
            found = dict(zip(runs, facts, strict=True))
        first = [out / run for run in runs if run.endswith(f"-{options.seeds[0]}")]
        decoded = decoding(first, 2 if options.quick else TURNS)
    except SpikegptError as error:
        sys.exit(f"error: {error}")
    tokens = options.steps * options.sizes["batch_size"] * options.sizes["ctx_len"]
    mixers = summarise(found, results, decoded, list(options.seeds))
    about = {"left_out": left_out, "tokens": tokens, "seeds": list(options.seeds)}
    if not options.quick:
        recipe = {"sizes": options.sizes, "shapes": shapes, "sides": SIDES, "own": RECIPES}
        written = name + ("" if tokens < 5e6 else f"_{round(tokens / 1e6)}m")
        payload = {"mixers": mixers, **about, "corpus": Path(options.data[0]).name, "recipe": recipe, "runs": found}
        write_result(written, payload)
    print(json.dumps({**mixers, **about}))


if __name__ == "__main__":
    main()
