"""Tokens per second of one text: the spike-driven model in our engine against llama.cpp with RWKV-7 of the same sizes.

    pip install xllamacpp gguf
    python benchmarks/decode_llama.py [--threads 2] [--quick]

llama.cpp has no RWKV-4. Its RWKV-7 gets as many layers and channels as `spikegpt-46m` and random weights, on which its
speed does not depend; parameters differ a little and are written beside. float32, Q8_0 (8.5 bits a weight) and Q4_0
(4.5 bits); matrices of low rank stay float32. Its time is what its server says of greedy decoding, which includes the
choice of the next token; ours does not. Its wheel is built for AVX2, so ours is measured held to AVX2 as well. Ours:
firing set to 15 %, and the dense twin. Last line: JSON with vs_llama_cpp_f32, _q8_0, _q4_0 (its token / our token, rows
of float32), the same held to AVX2, and int8 rows against Q8_0.
"""

import argparse
import contextlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import xllamacpp
from decoders import AVX2, BITS, another_process, decoder, make_model
from measure import alternate, ratio, write_result

from spikegpt.generate.engine import Engine

PRESET, RATE, TOKENS, HEAD, RANK = "spikegpt-46m", 0.15, 64, 64, 32
KINDS = {kind.name: kind for kind in (gguf.GGMLQuantizationType[name] for name in ("F32", "Q8_0", "Q4_0"))}


def write_model(path: Path, layers: int, channels: int, vocab_size: int, kind: gguf.GGMLQuantizationType) -> int:
    """Write an RWKV-7 of random weights as llama.cpp reads it; return how many parameters it has."""
    rng, writer, parameters = np.random.default_rng(0), gguf.GGUFWriter(path, "rwkv7"), 0

    def add(name: str, *shape: int) -> None:
        nonlocal parameters
        weights = (rng.standard_normal(shape) * 0.02).astype(np.float32)
        parameters += weights.size
        is_low_rank = RANK in shape
        stored = kind if len(shape) == 2 and not is_low_rank else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weights, stored), raw_dtype=stored)

    writer.add_context_length(1024)
    writer.add_embedding_length(channels)
    writer.add_block_count(layers)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(HEAD)
    writer.add_decay_lora_rank(RANK)
    writer.add_iclr_lora_rank(RANK)
    writer.add_value_residual_mix_lora_rank(RANK)
    writer.add_gate_lora_rank(RANK)
    writer.add_feed_forward_length(4 * channels)
    writer.add_head_count(0)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(["<s>", *(f"t{number}" for number in range(1, vocab_size))])
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (vocab_size - 1)])
    add("token_embd.weight", vocab_size, channels)
    add("output.weight", vocab_size, channels)
    for norm in ("token_embd_norm", "output_norm"):
        add(f"{norm}.weight", channels)
        add(f"{norm}.bias", channels)
    for layer in range(layers):
        block = f"blk.{layer}"
        for norm in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            add(f"{block}.{norm}.weight", channels)
            add(f"{block}.{norm}.bias", channels)
        for name in ("w", "a", "v"):
            add(f"{block}.time_mix_{name}0.weight", channels)
        for name in ("w", "a", "v", "g"):
            add(f"{block}.time_mix_{name}1.weight", RANK, channels)
            add(f"{block}.time_mix_{name}2.weight", channels, RANK)
        for name in ("k_k", "k_a", "r_k"):
            add(f"{block}.time_mix_{name}.weight", channels)
        for name in ("key", "value", "receptance", "output"):
            add(f"{block}.time_mix_{name}.weight", channels, channels)
        add(f"{block}.time_mix_lerp_fused.weight", 6, 1, 1, channels)
        add(f"{block}.channel_mix_lerp_k.weight", 1, 1, channels)
        add(f"{block}.channel_mix_key.weight", 4 * channels, channels)
        add(f"{block}.channel_mix_value.weight", channels, 4 * channels)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return parameters


def serve(path: Path, threads: int, seconds: list[float]):
    """Return a callable that has llama.cpp decode a turn; what each token of it took is added to `seconds`."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), 512, 1, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    request = {"prompt": [5, 6, 7, 8], "n_predict": TOKENS, "temperature": 0.0}
    request |= {"ignore_eos": True, "cache_prompt": False}

    def run():
        found = server.handle_completions(request)
        if "timings" not in found or found["timings"]["predicted_n"] != TOKENS:
            raise SystemExit(f"llama.cpp answered {json.dumps(found)[:300]}")
        seconds.append(found["timings"]["predicted_ms"] / 1e3)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repetitions = 3 if options.quick else 15
    spiking, twin = make_model(PRESET, "input", RATE), make_model(PRESET, "none")
    config, parameters = twin.config, {"spikegpt": twin.count_parameters()}
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, TOKENS)
    ours = {"float32 rows": Engine(spiking), "int8 rows": Engine(spiking, weights="int8")}
    contenders = {name: decoder(engine, spiking, tokens) for name, engine in ours.items()}
    contenders["twin"] = decoder(Engine(twin), twin, tokens)
    theirs: dict[str, list[float]] = {name: [] for name in KINDS}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for weights in ("float32", "int8"):
            case, limits = Path(folder) / f"{weights}.pt", {**AVX2, "NUMBA_CACHE_DIR": folder}
            torch.save((spiking, weights, tokens, options.threads), case)
            held = another_process(case, limits, BITS["avx2"])
            contenders[f"{weights} rows, AVX2"] = stack.enter_context(held)
        for name, kind in KINDS.items():
            path = Path(folder) / f"{name}.gguf"
            parameters["llama.cpp"] = write_model(path, config.n_layer, config.n_embd, config.vocab_size, kind)
            contenders[name] = serve(path, options.threads, theirs[name])
        times = alternate(contenders, repetitions)
    # as its server says, of all turns but the first
    times |= {name: seconds[1:] for name, seconds in theirs.items()}
    for name, seconds in times.items():
        print(f"{name:18s} {np.median(seconds) / TOKENS * 1e3:9.3f} ms/token")
    ratios = {}
    for suffix, held in (("", ""), ("_avx2", ", AVX2")):
        for name in KINDS:
            ratios[f"vs_llama_cpp_{name.lower()}{suffix}"] = ratio(times[name], times[f"float32 rows{held}"])
        ratios[f"int8_rows_vs_llama_cpp_q8_0{suffix}"] = ratio(times["Q8_0"], times[f"int8 rows{held}"])
    ratios["twin_vs_llama_cpp_f32"] = ratio(times["F32"], times["twin"])
    if not options.quick:
        versions = {name: importlib.metadata.version(name) for name in ("xllamacpp", "gguf")}
        versions["llama.cpp is built for"] = xllamacpp.get_system_info()
        payload = {
            "command": f"python benchmarks/decode_llama.py {' '.join(sys.argv[1:])}",
            "versions": versions,
            "parameters": parameters,
        }
        write_result("decode_llama", {**payload, "density": ours["float32 rows"].density(), "ratios": ratios})
    print(json.dumps({key: found["median"] for key, found in ratios.items()}))


if __name__ == "__main__":
    main()
