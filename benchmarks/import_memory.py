"""How much memory importing and loading takes: SpikeGPT-216M, RWKV-4-169M, RWKV-7 0.1B and 0.4B, of random numbers.

    python benchmarks/import_memory.py               all sizes, about four minutes and 4 GB of disk
    python benchmarks/import_memory.py --quick       a model of 5M, no published number

Linux only. Writes results/import_memory.json. Last line: JSON with the peak of importing and of loading, over the size
of the weights in float32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import write_result

from spikegpt.config import ModelConfig
from spikegpt.interop.names import empty_model

# layers, width, vocabulary, and the number type of the published file
SIZES = {
    "spikegpt-216m": (18, 768, 50277, torch.float32),
    "rwkv-4-169m": (12, 768, 50277, torch.bfloat16),
    "rwkv-7-191m": (12, 768, 65536, torch.bfloat16),
    "rwkv-7-450m": (24, 1024, 65536, torch.bfloat16),
}
QUICK = {"rwkv-4-5m": (6, 256, 256, torch.float32), "rwkv-7-5m": (6, 256, 256, torch.float32)}
# peak memory of the process so far, in bytes (getrusage would begin with its parent's);
# what the libraries take is not the model's
MEASURED = """
import json, re, sys
from pathlib import Path
import spikegpt.train.trainer
from spikegpt.checkpoint.weights import load_model
from spikegpt.interop.weights import import_weights
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
if sys.argv[1] == "import":
    import_weights(Path(sys.argv[2]), Path(sys.argv[3]))
else:
    load_model(sys.argv[3])
print(json.dumps(peak() - before))
"""


def write_weights(path: Path, config: ModelConfig, dtype: torch.dtype) -> int:
    """Write random weights and a tokenizer beside them; return the number of parameters."""
    shapes = {name: tensor.shape for name, tensor in empty_model(config).state_dict().items()}
    torch.save({name: torch.randn(shape).mul_(0.02).to(dtype) for name, shape in shapes.items()}, path)
    vocabulary = {f"w{i}": i for i in range(config.vocab_size)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    (path.parent / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return sum(shape.numel() for shape in shapes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    found = {}
    for name, (layers, width, vocab_size, dtype) in (QUICK if options.quick else SIZES).items():
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / f"{name}.pth", Path(folder) / "model"
            sizes = {"n_layer": layers, "n_embd": width, "vocab_size": vocab_size}
            spiking, mixer = "output" if "spike" in name else "none", "rwkv7" if "rwkv-7" in name else "rwkv4"
            parameters = write_weights(source, ModelConfig(**sizes, spiking=spiking, mixer=mixer), dtype)
            found[name] = {"parameters": parameters, "file_bytes": source.stat().st_size}
            for what in ("import", "load"):
                started = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", MEASURED, what, source, target], capture_output=True, text=True, check=True
                )
                peak = json.loads(done.stdout)
                found[name][what] = {
                    "peak_over_weights": round(peak / (4 * parameters), 3),
                    "seconds": round(time.perf_counter() - started, 1),
                }
        print(name, found[name], flush=True)
    if not options.quick:
        write_result("import_memory", {"sizes": found})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
