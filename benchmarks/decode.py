"""Tokens per second, one text, token by token: the spike-driven model in the engine against dense products.

    python benchmarks/decode.py --size 46m|216m [--threads 2] [--quick]
    python benchmarks/decode.py --run RUN --twin RUN          trained models at their own firing rate
    python benchmarks/decode.py --batch                       where gathering rows stops paying as the texts become more
    python benchmarks/decode.py --head                        a large vocabulary, read where eight bits cannot tell
    python benchmarks/decode.py --avx2                        the engine held to AVX2, beside the engine with AVX-512
    python benchmarks/decode.py --long 1000000 [--run RUN]    whether a token's time and the state grow with the text

Random weights, thresholds set so that each layer fires at the rate asked for; the rate that was then seen is printed
beside it. Against: torch's matrix-vector products of one token alone, in float32 and bfloat16 (nothing else of the
model: a dense engine can only be slower); the dense twin, whole tokens, in our engine, in its own forward pass and in
that under torch.compile (which needs a C++ compiler); and the `rwkv` package (cpu fp32, RWKV-4 of equal size; pip
install rwkv). Whole tokens of ours, everything but the choice of the next token. Last line: JSON with speedup_0.05 ...
speedup_0.25 (torch's products / our token), own_0.05 ... own_0.25 (the dense twin's token in our engine / ours),
int8_over_float32 (at 15 %), speedup_bf16_0.15, vs_rwkv_package, vs_torch_compile. Of trained models:
trained_vs_own_dense, written_vs_own_dense (tokens that are drawn too, as `generate` does), batch8_over_1 (tokens per
second of eight texts at once over those of one), percentiles of a token's time, and where it goes: the budget of a
token. With --avx2: avx512_over_avx2, by model; with --long: flat (a token's time after so many tokens over that after
ten).
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from decoders import (
    AVX2,
    BITS,
    TOKENS,
    another_process,
    decoder,
    make_model,
    own_forward,
    rwkv_package,
    several,
    timed_decoder,
    torch_compile,
    torch_products,
    writer,
)
from measure import alternate, ratio, write_result
from torch.utils._pytree import tree_leaves

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import ModelConfig, SamplingConfig
from spikegpt.generate.compiled.decoder import TRIED, RowDecoder
from spikegpt.generate.compiled.sums import registers
from spikegpt.generate.engine import GATHERED_TEXTS, Engine
from spikegpt.generate.sample import Chooser
from spikegpt.model.initial import calibrate_thresholds
from spikegpt.model.network import SpikeGPT

RATES = (0.05, 0.10, 0.15, 0.25)
# of a turn of a small model
RUN_TOKENS = 256
# tokens after which a token's time is looked at, besides the last
LONG_AFTER = (10, 1_000, 100_000)
LONG_TURN = 100


def measure_size(size: str, repetitions: int) -> dict:
    rng, preset = np.random.default_rng(0), f"spikegpt-{size}"
    dense = make_model(preset, "none")
    tokens = rng.integers(0, dense.config.vocab_size, TOKENS)
    engines, contenders = (
        {},
        {"torch_fp32": torch_products(dense, torch.float32), "torch_bf16": torch_products(dense, torch.bfloat16)},
    )
    twin = Engine(dense)
    contenders |= {"twin_engine": decoder(twin, dense, tokens), "twin_forward": own_forward(dense, tokens)}
    for rate in RATES:
        model = make_model(preset, "input", rate)
        engines[f"fp32_{rate:.2f}"] = Engine(model), model
        if rate == 0.15:
            engines["bf16_0.15"] = Engine(model, weights="bfloat16"), model
            engines["int8_0.15"] = Engine(model, weights="int8"), model
    real_head = make_model(preset, "input", 0.15, head=False)
    engines["fp32_0.15_dense_head"] = Engine(real_head), real_head
    contenders |= {name: decoder(engine, model, tokens) for name, (engine, model) in engines.items()}
    with tempfile.TemporaryDirectory() as folder:
        contenders["rwkv_package"] = rwkv_package(dense, tokens, folder)
    contenders["torch_compile"] = torch_compile(dense, tokens)
    contenders = {name: run for name, run in contenders.items() if run}
    times = alternate(contenders, repetitions)
    density = {name: round(engine.density(), 4) for name, (engine, _) in engines.items()}
    for name, seconds in times.items():
        print(f"{name:22s} {np.median(seconds) / TOKENS * 1e3:9.3f} ms/token   firing {density.get(name, '')}")
    ratios = {f"speedup_{rate:.2f}": ratio(times["torch_fp32"], times[f"fp32_{rate:.2f}"]) for rate in RATES}
    ratios |= {f"own_{rate:.2f}": ratio(times["twin_engine"], times[f"fp32_{rate:.2f}"]) for rate in RATES}
    fast = min(("bf16_0.15", "int8_0.15"), key=lambda name: np.median(times[name]))
    ratios["speedup_bf16_0.15"] = ratio(times["torch_bf16"], times[fast])
    ratios["speedup_bf16_rows_0.15"] = ratio(times["torch_bf16"], times["bf16_0.15"])
    ratios["speedup_int8_rows_0.15"] = ratio(times["torch_bf16"], times["int8_0.15"])
    ratios["speedup_dense_head_0.15"] = ratio(times["torch_fp32"], times["fp32_0.15_dense_head"])
    ratios["int8_over_float32"] = ratio(times["fp32_0.15"], times["int8_0.15"])
    ratios["twin_engine_vs_torch"] = ratio(times["torch_fp32"], times["twin_engine"])
    ratios["vs_twin_forward_0.15"] = ratio(times["twin_forward"], times["fp32_0.15"])
    for other in ("rwkv_package", "torch_compile"):
        if other in times:
            ratios[f"vs_{other}"] = ratio(times[other], times["fp32_0.15"])
    return {"parameters": dense.count_parameters(), "density": density, "ratios": ratios}


def measure_runs(run: Path, twin: Path, repetitions: int) -> dict:
    (model, tokenizer), (dense, _) = load_model(run), load_model(twin)
    words = b"It was the best of times, it was the worst of times, " * 40
    tokens = np.asarray(tokenizer.encode(words), dtype=np.int64)[:RUN_TOKENS]
    engine, other, taken = Engine(model), Engine(dense), {"spiking": [], "twin": []}
    contenders = {
        "spiking": timed_decoder(engine, model, tokens, taken["spiking"]),
        "twin": timed_decoder(other, dense, tokens, taken["twin"]),
        "torch": torch_products(dense, torch.float32, len(tokens)),
    }
    compiled = torch_compile(dense, tokens)
    if compiled:
        contenders["torch_compile"] = compiled
    times = alternate(contenders, repetitions)
    writers = {"spiking": writer(Engine(model), model, tokens), "twin": writer(Engine(dense), dense, tokens)}
    written = alternate(writers, repetitions)
    one, eight = decoder(Engine(model), model, tokens[:TOKENS]), several(Engine(model), model, tokens[:TOKENS], 8)
    batch = alternate({"one": one, "eight": eight}, repetitions)
    ratios = {
        "trained_vs_own_dense": ratio(times["twin"], times["spiking"]),
        "written_vs_own_dense": ratio(written["twin"], written["spiking"]),
        "twin_vs_torch_products": ratio(times["torch"], times["twin"]),
        "vs_torch_products": ratio(times["torch"], times["spiking"]),
        "batch8_over_1": ratio([8 * seconds for seconds in batch["one"]], batch["eight"]),
    }
    if compiled:
        ratios["vs_torch_compile"] = ratio(times["torch_compile"], times["spiking"])
    budgets = {name: budget(found, tokens, repetitions) for name, found in (("spiking", model), ("twin", dense))}
    for name, found in budgets.items():
        print(f"budget of a token, {name}, in ns")
        for part, ns in found.items():
            print(f"  {part:26s} {ns:9,.0f}")
    percentiles = {
        f"p{share}_us": {name: round(float(np.percentile(seconds, share)) * 1e6, 1) for name, seconds in taken.items()}
        for share in (50, 99)
    }
    return {
        "run": run.name,
        "twin": twin.name,
        "tokens_of_a_turn": len(tokens),
        "parameters": model.count_parameters(),
        "density": {"spiking": engine.density(), "twin": other.density()},
        "written_us": {
            name: round(float(np.median(seconds)) / len(tokens) * 1e6, 1) for name, seconds in written.items()
        },
        "ratios": ratios,
        **percentiles,
        "budget of a token, ns": budgets,
    }


def budget(model: SpikeGPT, tokens: np.ndarray, repetitions: int) -> dict[str, float]:
    """Return part -> median ns of it in a token; the same of whole tokens, with marks of the parts and without."""
    steps, turns = [torch.tensor([token]) for token in tokens], []
    marked, plain = (
        RowDecoder(model, "float32", [Engine(model).threads], has_clock=has_clock) for has_clock in (True, False)
    )
    with torch.inference_mode():
        state = model(torch.from_numpy(tokens[None, :8])).state
    for timed in (marked, plain):
        timed.take(state)
    # a turn of each warms it up
    for turn in range(repetitions + 1):
        found = {}
        for name, timed in (("without marks", plain), ("token", marked)):
            timed.step(steps[0])
            before, start = marked.ticks(), time.perf_counter_ns()
            for step in steps:
                timed.step(step)
            found[name] = (time.perf_counter_ns() - start) / len(steps)
        spent = {part: ticks - before[part] for part, ticks in marked.ticks().items()}
        ns_of_a_tick = found["token"] / spent.pop("now")
        found = {part: ticks * ns_of_a_tick for part, ticks in spent.items()} | found
        found["around the compiled call"] = found["token"] - sum(spent.values()) * ns_of_a_tick
        if turn:
            turns.append(found)
    return {part: round(float(np.median([turn[part] for turn in turns]))) for part in turns[0]}


def measure_batch(repetitions: int) -> dict:
    """Where the two ways cross: rows gathered text by text, and the model's own forward pass over all texts."""
    ratios = {}
    for rate in (0.05, 0.15, 0.25):
        model = make_model("spikegpt-46m", "input", rate)
        for texts in (1, 4, 8, 16, 32):
            tokens = torch.randint(model.config.vocab_size, (texts, 8))
            with torch.inference_mode():
                state = model(tokens).state
            engine = Engine(model)
            engine.start(state, by_rows=True)
            step, forward = (
                lambda e=engine, t=tokens: e.step(t[:, 0]),
                lambda m=model, t=tokens, s=state: m(t[:, :1], s),
            )
            # until it is chosen how the threads share the work
            for _ in range(TRIED * 2 * torch.get_num_threads()):
                step()
            with torch.inference_mode():
                times = alternate({"rows": step, "dense": forward}, repetitions * 2)
            ratios[f"{rate:.2f} x {texts}"] = found = ratio(times["dense"], times["rows"])
            print(
                f"firing {rate:.2f}, {texts:2d} texts: {rate * texts:.2f} rows read per weight row; "
                f"dense / rows {found['median']:.2f}"
            )
    return {"ratios": ratios, "gathered_texts": GATHERED_TEXTS}


def measure_head(repetitions: int) -> dict:
    """Whole tokens of the 216M size: with all logits, and with those that the 1 and the 40 largest may be among."""
    ratios, candidates = {}, {}
    for name, is_spiking in (("spiking head", True), ("real head", False)):
        model = make_model("spikegpt-216m", "input", 0.15, head=is_spiking)
        # logits that differ as little as chance has it: the more alike, the more have to be looked at
        torch.nn.init.normal_(model.head.weight, std=0.03)
        tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, TOKENS)
        contenders = {top_k: decoder(Engine(model, top_k=top_k), model, tokens) for top_k in (None, 1, 40)}
        times = alternate(contenders, repetitions)
        for top_k, seconds in times.items():
            print(f"{name:12s} top_k {top_k!s:4s} {np.median(seconds) / TOKENS * 1e3:8.3f} ms/token")
        for top_k in (1, 40):
            ratios[f"{name}, top_k {top_k}"] = ratio(times[None], times[top_k])
            engine = Engine(model, top_k=top_k)
            with torch.inference_mode():
                engine.start(model(torch.from_numpy(tokens[None, :8])).state)
            found = [engine.step(torch.tensor([token])).isfinite().sum().item() for token in tokens[:16]]
            candidates[f"{name}, top_k {top_k}"] = round(float(np.mean(found)), 1)
    return {"candidates": candidates, "ratios": ratios}


def measure_avx2(repetitions: int) -> dict:
    """The same models and tokens in two processes, of which one compiles for a processor without AVX-512."""
    if 8 * registers()[1] != BITS["avx512"]:
        raise SystemExit("this processor has no AVX-512, there is nothing to compare")
    ratios = {}
    for preset, rate in (("small", 0.20), ("spikegpt-46m", 0.15)):
        models = {"spiking": make_model(preset, "input", rate), "twin": make_model(preset, "none")}
        tokens = np.random.default_rng(0).integers(0, models["twin"].config.vocab_size, RUN_TOKENS)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            limits, contenders = {"avx512": {}, "avx2": {**AVX2, "NUMBA_CACHE_DIR": str(folder)}}, {}
            for name, model in models.items():
                torch.save((model, "float32", tokens, torch.get_num_threads()), folder / f"{name}.pt")
                for kind, bits in BITS.items():
                    other = another_process(folder / f"{name}.pt", limits[kind], bits)
                    contenders[name, kind] = stack.enter_context(other)
            times = alternate(contenders, repetitions)
        for (name, kind), seconds in times.items():
            print(f"{preset:12s} {name:8s} {kind:7s} {np.median(seconds) / len(tokens) * 1e6:9.1f} us/token")
        for name in models:
            ratios[f"avx512_over_avx2 {preset} {name}"] = ratio(times[name, "avx2"], times[name, "avx512"])
        for kind in BITS:
            ratios[f"vs_own_dense_{kind} {preset}"] = ratio(times["twin", kind], times["spiking", kind])
    return {"threads": torch.get_num_threads(), "ratios": ratios}


def measure_long(most: int, run: Path | None, repetitions: int) -> dict:
    """Decode so many tokens, each drawn from the logits before it; then go on, in turn, from the states on the way."""
    torch.manual_seed(0)
    if run:
        model, _ = load_model(run)
    else:
        model = SpikeGPT(ModelConfig(n_layer=4, n_embd=192, vocab_size=256, spiking="input")).eval()
        calibrate_thresholds(model, 0.20)
    engine, states, sampling = Engine(model), {}, SamplingConfig(temperature=1.0)
    all_tokens = torch.ones(model.config.vocab_size, dtype=torch.bool)
    chooser = Chooser(sampling, 0, all_tokens, torch.empty(0, dtype=torch.long))
    with torch.inference_mode():
        engine.start(model(torch.zeros(1, 1, dtype=torch.long)).state)
    token, after = torch.zeros(1, dtype=torch.long), (*(count for count in LONG_AFTER if count < most), most)
    for read in range(1, most + 1):
        token = torch.tensor([chooser.choose(engine.step(token)[0])])
        if read in after:
            states[read] = engine.state()
    tokens = torch.randint(model.config.vocab_size, (LONG_TURN, 1))
    taken = {count: [] for count in after}

    def go_on(count: int):
        engine.start(states[count])
        seconds = []
        for following in tokens:
            start = time.perf_counter()
            engine.step(following)
            seconds.append(time.perf_counter() - start)
        taken[count].append(float(np.median(seconds)))

    alternate({count: lambda c=count: go_on(c) for count in after}, 4 * repetitions)
    state_bytes = {
        count: sum(part.nbytes for part in tree_leaves(state) if part is not None) for count, state in states.items()
    }
    p50_us = {count: round(float(np.median(turns)) * 1e6, 1) for count, turns in taken.items()}
    for count in after:
        print(f"after {count:9,} tokens: {p50_us[count]:8.1f} us/token, state of {state_bytes[count]:,} bytes")
    return {
        "model": run.name if run else "random, firing set to 20 %",
        "parameters": model.count_parameters(),
        "p50_us": p50_us,
        "state_bytes": state_bytes,
        "ratios": {"flat": ratio(taken[most], taken[after[0]])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("46m", "216m"), default="46m")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--twin", type=Path)
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--head", action="store_true")
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--long", type=int, metavar="TOKENS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", metavar="NAME", help="results/NAME.json in the place of the usual one")
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repetitions = 3 if options.quick else 15
    if options.long:
        name, result = "decode_long", measure_long(options.long, options.run, repetitions)
    elif options.avx2:
        name, result = "decode_avx2", measure_avx2(repetitions)
    elif options.head:
        name, result = "decode_head", measure_head(repetitions)
    elif options.run:
        name, result = "decode_run", measure_runs(options.run, options.twin, repetitions)
    elif options.batch:
        name, result = "decode_batch", measure_batch(repetitions)
    else:
        name, result = f"decode_{options.size}", measure_size(options.size, repetitions)
    if not options.quick:
        write_result(
            options.result or name, {"command": f"python benchmarks/decode.py {' '.join(sys.argv[1:])}", **result}
        )
    print(json.dumps({key: found["median"] for key, found in result["ratios"].items()}))


if __name__ == "__main__":
    main()
