"""What `decode.py` lets decode: models with firing set, and each way to read their tokens, as a callable for a turn."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from spikegpt.config import SamplingConfig, model_preset
from spikegpt.generate.compiled.sums import registers
from spikegpt.generate.engine import Engine
from spikegpt.generate.sample import Chooser
from spikegpt.model.initial import calibrate_thresholds
from spikegpt.model.network import SpikeGPT

# of a turn: after few tokens a model still waits for weights that the turns of the others drove out of the cache
TOKENS = 64
# what a processor without AVX-512 compiles to, and bits of its registers
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}
BITS = {"avx512": 512, "avx2": 256}


def make_model(preset: str, spiking: str, rate: float | None = None, head: bool = True) -> SpikeGPT:
    torch.manual_seed(0)
    model = SpikeGPT(model_preset(preset, spiking=spiking, dropout=0.0, spiking_head=head)).eval()
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


def writer(engine: Engine, model: SpikeGPT, tokens: np.ndarray) -> Callable[[], None]:
    """Return what writes as many tokens as these, each drawn from the logits before it, after the first eight."""
    all_tokens = torch.ones(model.config.vocab_size, dtype=torch.bool)
    with torch.inference_mode():
        output = model(torch.from_numpy(tokens[None, :8]))

    def run() -> None:
        engine.start(output.state)
        choosers = [Chooser(SamplingConfig(), 0, all_tokens, torch.from_numpy(tokens[:8]))]
        logits, left = output.logits[:, -1], len(tokens)
        while left:
            written, logits = engine.write(logits, choosers, left)
            left -= written.shape[1]

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


def torch_compile(model: SpikeGPT, tokens: np.ndarray):
    """Return a callable that reads `tokens` by the model's forward pass under torch.compile; None without g++."""
    if not shutil.which("g++"):
        return None

    @torch.compile
    def step(token, state):
        output = model(token, state)
        return output.logits, output.state

    steps = [torch.tensor([[token]]) for token in tokens]
    with torch.inference_mode():
        start = model(torch.from_numpy(tokens[None, :8])).state

    @torch.inference_mode()
    def run():
        state = start
        for token in steps:
            _, state = step(token, state)

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


@contextlib.contextmanager
def another_process(case: Path, limits: dict[str, str], bits: int) -> Iterator[Callable[[], None]]:
    """Yield a callable that has `case` decoded once by a process whose environment also says `limits`."""
    command = [sys.executable, "-c", "import sys, decoders; decoders.serve_turns(sys.argv[1])", str(case)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **limits}, cwd=Path(__file__).parent, **pipes) as process:

        def turn():
            process.stdin.write("\n")
            process.stdin.flush()
            if (found := process.stdout.readline().strip()) != str(bits):
                raise SystemExit(f"a process that should sum in registers of {bits} bits said {found!r}")

        # it compiles first
        turn()
        yield turn
        process.stdin.close()


def serve_turns(case: str) -> None:
    """Decode `case` once for every line that comes in, and say then how many bits its registers have."""
    # what the parent wrote
    model, weights, tokens, threads = torch.load(case, weights_only=False)
    torch.set_num_threads(threads)
    run = decoder(Engine(model, weights), model, tokens)
    for _ in sys.stdin:
        run()
        print(8 * registers()[1], flush=True)
