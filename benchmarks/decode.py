"""Tokens per second, one text, token by token: the spike-driven model in the engine against dense products.

    python benchmarks/decode.py --size 46m|216m [--threads 2] [--quick]
    python benchmarks/decode.py --run RUN --twin RUN          trained models at their own firing rate
    python benchmarks/decode.py --batch                       where gathering rows stops paying as the texts become more

Random weights, thresholds set so that each layer fires at the rate asked for; the rate that was then seen is printed
beside it. Against: torch's matrix-vector products of one token alone, in float32 and bfloat16 (nothing else of the
model: a dense engine can only be slower); the dense twin, whole tokens, in our engine and in its own forward pass; and
the `rwkv` package (cpu fp32, RWKV-4 of equal size; pip install rwkv). Whole tokens of ours, everything but the choice
of the next token. Last line: JSON with speedup_0.05 ... speedup_0.25 (torch's products / our token), speedup_bf16_0.15,
vs_rwkv_package. Of trained models: trained_vs_own_dense, batch8_over_1 (tokens per second of eight texts at once over
those of one), percentiles of a token's time, and where it goes: the budget of a token.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import alternate, ratio, write_result

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import model_preset
from spikegpt.generate.compiled.decoder import TRIED, RowDecoder
from spikegpt.generate.engine import GATHERED_TEXTS, Engine
from spikegpt.model.initial import calibrate_thresholds
from spikegpt.model.network import SpikeGPT

RATES = (0.05, 0.10, 0.15, 0.25)
TOKENS = 24
# of a turn of a trained model: after few tokens it still waits for weights that the turns of the others have driven
# out of the cache
RUN_TOKENS = 256


def make_model(size: str, spiking: str, rate: float | None = None, head: bool = True) -> SpikeGPT:
    torch.manual_seed(0)
    model = SpikeGPT(model_preset(f"spikegpt-{size}", spiking=spiking, dropout=0.0, spiking_head=head)).eval()
    if spiking == "none":
        # RWKV starts from zero matrices, whose products would be skipped
        for block in model.blocks:
            for matrix in (
                block.att.key,
                block.att.receptance,
                block.att.output,
                block.ffn.value,
                block.ffn.receptance,
            ):
                torch.nn.init.normal_(matrix.weight, std=0.02)
    elif rate is not None:
        calibrate_thresholds(model, rate)
    return model


def decoder(engine: Engine, model: SpikeGPT, tokens: np.ndarray):
    """Return a callable that reads `tokens` one by one in `engine`, going on from where it was."""
    with torch.inference_mode():
        engine.start(model(torch.from_numpy(tokens[None, :8])).state)

    def run():
        for token in tokens:
            engine.step(torch.tensor([token]))

    return run


def torch_products(model: SpikeGPT, dtype: torch.dtype, tokens: int = TOKENS):
    """Return a callable that does every matrix product of so many tokens and nothing else."""
    matrices = [module.weight.detach().to(dtype) for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {matrix.shape[1]: torch.randn(matrix.shape[1]).to(dtype) for matrix in matrices}

    @torch.inference_mode()
    def run():
        for _ in range(tokens):
            for matrix in matrices:
                torch.mv(matrix, inputs[matrix.shape[1]])

    return run


def own_forward(model: SpikeGPT, tokens: np.ndarray):
    @torch.inference_mode()
    def run():
        state = None
        for token in tokens:
            state = model(torch.tensor([[token]]), state).state

    return run


def rwkv_package(model: SpikeGPT, tokens: np.ndarray, folder: str):
    """Return a callable that reads `tokens` with the `rwkv` package and the twin's weights; None without it."""
    try:
        from rwkv.model import RWKV
    except ImportError:
        return None
    path = Path(folder) / "rwkv4.pth"
    torch.save({name: value.clone() for name, value in model.state_dict().items()}, path)
    other = RWKV(model=str(path), strategy="cpu fp32", verbose=False)

    def run():
        state = None
        for token in tokens:
            _, state = other.forward([int(token)], state)

    return run


def measure_size(size: str, repetitions: int) -> dict:
    rng = np.random.default_rng(0)
    dense = make_model(size, "none")
    tokens = rng.integers(0, dense.config.vocab_size, TOKENS)
    engines, contenders = (
        {},
        {"torch_fp32": torch_products(dense, torch.float32), "torch_bf16": torch_products(dense, torch.bfloat16)},
    )
    twin = Engine(dense)
    contenders |= {"twin_engine": decoder(twin, dense, tokens), "twin_forward": own_forward(dense, tokens)}
    for rate in RATES:
        model = make_model(size, "input", rate)
        engines[f"fp32_{rate:.2f}"] = Engine(model), model
        if rate == 0.15:
            engines["bf16_0.15"] = Engine(model, weights="bfloat16"), model
            engines["int8_0.15"] = Engine(model, weights="int8"), model
    real_head = make_model(size, "input", 0.15, head=False)
    engines["fp32_0.15_dense_head"] = Engine(real_head), real_head
    contenders |= {name: decoder(engine, model, tokens) for name, (engine, model) in engines.items()}
    with tempfile.TemporaryDirectory() as folder:
        package = rwkv_package(dense, tokens, folder)
    if package:
        contenders["rwkv_package"] = package
    times = alternate(contenders, repetitions)
    density = {name: round(engine.density(), 4) for name, (engine, _) in engines.items()}
    for name, seconds in times.items():
        print(f"{name:22s} {np.median(seconds) / TOKENS * 1e3:9.3f} ms/token   firing {density.get(name, '')}")
    ratios = {f"speedup_{rate:.2f}": ratio(times["torch_fp32"], times[f"fp32_{rate:.2f}"]) for rate in RATES}
    ratios |= {f"vs_twin_engine_{rate:.2f}": ratio(times["twin_engine"], times[f"fp32_{rate:.2f}"]) for rate in RATES}
    fast = min(("bf16_0.15", "int8_0.15"), key=lambda name: np.median(times[name]))
    ratios["speedup_bf16_0.15"] = ratio(times["torch_bf16"], times[fast])
    ratios["speedup_bf16_rows_0.15"] = ratio(times["torch_bf16"], times["bf16_0.15"])
    ratios["speedup_int8_rows_0.15"] = ratio(times["torch_bf16"], times["int8_0.15"])
    ratios["speedup_dense_head_0.15"] = ratio(times["torch_fp32"], times["fp32_0.15_dense_head"])
    ratios["twin_engine_vs_torch"] = ratio(times["torch_fp32"], times["twin_engine"])
    ratios["vs_twin_forward_0.15"] = ratio(times["twin_forward"], times["fp32_0.15"])
    if package:
        ratios["vs_rwkv_package"] = ratio(times["rwkv_package"], times["fp32_0.15"])
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
    times = alternate(contenders, repetitions)
    one, eight = decoder(Engine(model), model, tokens[:TOKENS]), several(Engine(model), model, tokens[:TOKENS], 8)
    batch = alternate({"one": one, "eight": eight}, repetitions)
    ratios = {
        "trained_vs_own_dense": ratio(times["twin"], times["spiking"]),
        "twin_vs_torch_products": ratio(times["torch"], times["twin"]),
        "vs_torch_products": ratio(times["torch"], times["spiking"]),
        "batch8_over_1": ratio([8 * seconds for seconds in batch["one"]], batch["eight"]),
    }
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
        "ratios": ratios,
        **percentiles,
        "budget of a token, ns": budgets,
    }


def timed_decoder(engine: Engine, model: SpikeGPT, tokens: np.ndarray, taken: list[float]):
    """The same as `decoder`; the seconds of every token are added to `taken`."""
    steps = [torch.tensor([token]) for token in tokens]
    with torch.inference_mode():
        engine.start(model(torch.from_numpy(tokens[None, :8])).state)

    def run():
        for token in steps:
            start = time.perf_counter()
            engine.step(token)
            taken.append(time.perf_counter() - start)

    return run


def several(engine: Engine, model: SpikeGPT, tokens: np.ndarray, texts: int):
    """Return a callable that reads `tokens` in so many texts at once, each from another place on."""
    ids = torch.from_numpy(np.stack([np.roll(tokens, -3 * text) for text in range(texts)]))
    with torch.inference_mode():
        engine.start(model(ids[:, :8]).state)

    def run():
        for step in range(len(tokens)):
            engine.step(ids[:, step])

    return run


def budget(model: SpikeGPT, tokens: np.ndarray, repetitions: int) -> dict[str, float]:
    """Return part -> median ns of it in a token; the same of whole tokens, with marks of the parts and without."""
    steps, turns = [torch.tensor([token]) for token in tokens], []
    marked, plain = (
        RowDecoder(model, "float32", [Engine(model).threads], has_clock=has_clock) for has_clock in (True, False)
    )
    with torch.inference_mode():
        state = model(torch.from_numpy(tokens[None, :8])).state
    for decoder in (marked, plain):
        decoder.take(state)
    # a turn of each warms it up
    for turn in range(repetitions + 1):
        found = {}
        for name, decoder in (("without marks", plain), ("token", marked)):
            decoder.step(steps[0])
            before, start = marked.ticks(), time.perf_counter_ns()
            for step in steps:
                decoder.step(step)
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
        model = make_model("46m", "input", rate)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("46m", "216m"), default="46m")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--twin", type=Path)
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repetitions = 3 if options.quick else 15
    if options.run:
        name, result = "decode_run", measure_runs(options.run, options.twin, repetitions)
    elif options.batch:
        name, result = "decode_batch", measure_batch(repetitions)
    else:
        name, result = f"decode_{options.size}", measure_size(options.size, repetitions)
    if not options.quick:
        write_result(name, {"command": f"python benchmarks/decode.py {name.removeprefix('decode_')}", **result})
    print(json.dumps({key: found["median"] for key, found in result["ratios"].items()}))


if __name__ == "__main__":
    main()
