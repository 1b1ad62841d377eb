"""How fast the event-driven WKV is on the CPU, by the rate of its events, beside the plain wkv.

Forward, and forward and backward, at (B, T, C) = (8, 1024, 512) in float32, one process, the contenders in turn.
    python benchmarks/event_wkv.py [--quick] [--threads 2]
"""

import argparse
import ctypes
import json
import statistics
import sys

import torch
from measure import alternate, ratio, write_result

from spikegpt.kernels import event_wkv, wkv

B, T, C = 8, 1024, 512
RATES = (0.02, 0.05, 0.1, 0.3, 1.0)
BACKWARD_RATES = (0.1, 1.0)


def keep_freed_memory() -> None:
    """Tell the C library to keep what is freed: else the first in a round pays for new pages, not for its work."""
    if sys.platform == "linux":
        mmap_threshold, trim_threshold = -3, -1
        for option in (mmap_threshold, trim_threshold):
            ctypes.CDLL(None).mallopt(option, 2**30)


def make_inputs(rate: float, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Return (time_decay, time_first, key, value): a share `rate` of the values is a spike, +1 or -1."""
    time_decay, time_first = (torch.randn(C, generator=generator) for _ in range(2))
    key, sign = (torch.randn(B, T, C, generator=generator) for _ in range(2))
    return time_decay, time_first, key, sign.sign() * (torch.rand(B, T, C, generator=generator) < rate)


def check(inputs: tuple[torch.Tensor, ...]) -> None:
    """Raise unless a part of the inputs gives the outputs, states and gradients of the reference."""
    time_decay, time_first, key, value = inputs
    part = [tensor.clone().requires_grad_() for tensor in (time_decay, time_first, key[:2, :100], value[:2, :100])]
    found, wanted = [], []
    for backend, results in (("numba", found), ("reference", wanted)):
        output, state = event_wkv(*part, backend=backend)
        results += [output, *state, *torch.autograd.grad(output.square().sum(), part)]
    for ours, want in zip(found, wanted, strict=True):
        assert (ours - want).abs().max() <= 1e-5 * want.abs().max(), "another result than the reference's"


def forward(function, inputs):
    def run():
        with torch.no_grad():
            return function(*inputs, backend="numba")[0]

    return run


def forward_backward(function, inputs, grad):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    return lambda: torch.autograd.grad(function(*inputs, backend="numba")[0], inputs, grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer repetitions, the same sizes")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    repetitions = 7 if arguments.quick else 41

    generator = torch.Generator().manual_seed(0)
    inputs = {rate: make_inputs(rate, generator) for rate in RATES}
    for given in inputs.values():
        check(given)
    grad = torch.randn(B, T, C, generator=generator)
    contenders = {f"rate_{rate:g}": forward(event_wkv, inputs[rate]) for rate in RATES} | {
        "wkv": forward(wkv, inputs[1.0])
    }
    both = {f"rate_{rate:g}_backward": forward_backward(event_wkv, inputs[rate], grad) for rate in BACKWARD_RATES}
    both["wkv_backward"] = forward_backward(wkv, inputs[1.0], grad)
    # apart, so that the large gradients do not push the small outputs out of the cache
    times = alternate(contenders, repetitions, warmup=2) | alternate(both, repetitions, warmup=2)

    milliseconds = {name: round(statistics.median(found) * 1e3, 3) for name, found in times.items()}
    over = {name: ratio(times[name], times["rate_1"]) for name in contenders if name != "rate_1"}
    over |= {name: ratio(times[name], times["rate_1_backward"]) for name in both if name != "rate_1_backward"}
    print(f"{'':20s} median ms  fastest ms  over rate 1 (quartiles)")
    for name, found in times.items():
        spread = (
            f"{over[name]['median']:.2f} ({over[name]['quartiles'][0]:.2f} to {over[name]['quartiles'][1]:.2f})"
            if name in over
            else ""
        )
        print(f"{name:20s} {milliseconds[name]:9.2f}  {min(found) * 1e3:10.2f}  {spread}")
    payload = {"ms": milliseconds, "over_rate_1": over}
    if not arguments.quick:
        command = f"python benchmarks/event_wkv.py --threads {arguments.threads}"
        write_result("event_wkv", {"command": command, "shape": [B, T, C], **payload})
    print(json.dumps(payload))


if __name__ == "__main__":
    main()
