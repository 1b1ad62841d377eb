"""How fast the CPU kernels are: lif against SpikingJelly, snnTorch and a bare copy; wkv, wkv6 and wkv7 against torch.

Forward and backward at (B, T, C) = (8, 1024, 512) in float32, one process, the contenders in turn.
    python benchmarks/kernels.py [--quick] [--threads 2]
"""

import argparse
import json
import statistics

import torch
from measure import alternate, ratio, write_result

from spikegpt.kernels import lif, wkv, wkv6, wkv7

B, T, C = 8, 1024, 512
HEAD_SIZE = 64
# of the chunked form: the fastest of 16, 32, 64 and 128 tokens; factors of longer chunks are denormal numbers
CHUNK = 32
DECAY = 0.5


def forward_backward(function, inputs, grad):
    """Return a callable that runs `function(*inputs)` and its backward pass, and returns output and gradients."""

    def run():
        output = function(*inputs)
        return output.detach(), torch.autograd.grad(output, inputs, grad)

    return run


def lif_contenders() -> dict:
    import snntorch
    from spikingjelly.activation_based import neuron, surrogate

    current = torch.randn(B, T, C).mul_(1.5).add_(0.5).requires_grad_()
    grad = torch.randn(B, T, C)
    # both libraries are time first; they get their own layout ready made, so that no transposition is timed
    time_first, grad_time_first = (
        current.detach().transpose(0, 1).contiguous().requires_grad_(),
        grad.transpose(0, 1).contiguous(),
    )

    def spikingjelly(x):
        layer = neuron.LIFNode(
            tau=1 / (1 - DECAY), decay_input=True, v_threshold=1.0, v_reset=0.0, detach_reset=False,
            surrogate_function=surrogate.ATan(alpha=2.0), step_mode="m",
        )  # fmt: skip
        return layer(x)

    def snn(x):
        # Leaky has no gain on its input
        layer = snntorch.Leaky(
            beta=DECAY,
            threshold=1.0,
            reset_mechanism="zero",
            reset_delay=False,
            spike_grad=snntorch.surrogate.atan(alpha=2.0),
        )
        membrane, spikes = layer.init_leaky(), []
        for step in ((1 - DECAY) * x).unbind(0):
            spike, membrane = layer(step, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    # bytes that must move: forward reads the current and writes the spikes, backward reads the current and the gradient
    # and writes a gradient: 5 tensors of B T C floats. One dst.copy_(src) reads one and writes one, so 2.5 copies; we
    # take 2 whole ones and one of half the size
    source, target = torch.randn(B, T, C), torch.zeros(B, T, C)

    def copy():
        target.copy_(source)
        target.copy_(source)
        target[: B // 2].copy_(source[: B // 2])

    def fresh_copy():
        # the same bytes into new memory, as lif must: its two outputs are new tensors,
        # whose pages the system has to hand out
        copies = source.clone(), source.clone()
        target[: B // 2].copy_(source[: B // 2])
        return copies

    return {
        "lif": forward_backward(lambda x: lif(x, membrane_decay=DECAY)[0], (current,), grad),
        "spikingjelly": forward_backward(spikingjelly, (time_first,), grad_time_first),
        "snntorch": forward_backward(snn, (time_first,), grad_time_first),
        "copy": copy,
        "fresh_copy": fresh_copy,
    }


def wkv_contenders() -> dict:
    time_decay, time_first = (torch.randn(C).requires_grad_() for _ in range(2))
    key, value = (torch.randn(B, T, C).requires_grad_() for _ in range(2))
    inputs, grad = (time_decay, time_first, key, value), torch.randn(B, T, C)
    return {
        "wkv": forward_backward(lambda *given: wkv(*given, backend="numba")[0], inputs, grad),
        "wkv_torch_loop": forward_backward(lambda *given: wkv(*given, backend="reference")[0], inputs, grad),
    }


def chunked_wkv6(r, log_w, k, v, u):
    """Return the output of `wkv6`, CHUNK tokens at a time by products of matrices, as plain torch is fast.

    Source: the chunked form of github.com/fla-org/flash-linear-attention, ops/rwkv6, at its fastest: the decays here
    are so weak that the one between two tokens of a chunk may be a quotient, which none that is learned need be.
    """
    B, T, H, N = r.shape
    bonus = (r * u * k).sum(-1, keepdim=True) * v
    r, log_w, k, v = (x.transpose(1, 2).reshape(B * H, T // CHUNK, CHUNK, N) for x in (r, log_w, k, v))
    after = log_w.cumsum(2)
    end, r, k = torch.exp(after[:, :, -1:]), r * torch.exp(after - log_w), k * torch.exp(-after)
    within = (r @ k.mT) * torch.ones(CHUNK, CHUNK).tril(-1) @ v
    added = (k * end).mT @ v
    state, outputs = torch.zeros(B * H, N, N), []
    # not by index: the gradient of a part would be as large as the whole, for every chunk
    for r_chunk, decay, new in zip(r.unbind(1), end.mT.unbind(1), added.unbind(1), strict=True):
        outputs.append(r_chunk @ state)
        state = decay * state + new
    return (torch.stack(outputs, 1) + within).reshape(B, H, T, N).transpose(1, 2) + bonus


def wkv6_contenders() -> dict:
    shape = B, T, C // HEAD_SIZE, HEAD_SIZE
    r, k, v = (torch.randn(shape) for _ in range(3))
    inputs = r, -(0.5**0.5) * torch.rand(shape), k / HEAD_SIZE**0.5, v, torch.randn(shape[2:])
    inputs, grad = tuple(x.requires_grad_() for x in inputs), torch.randn(shape)
    return {
        "wkv6": forward_backward(lambda *given: wkv6(*given, backend="numba")[0], inputs, grad),
        "wkv6_torch_loop": forward_backward(lambda *given: wkv6(*given, backend="reference")[0], inputs, grad),
        "wkv6_chunked": forward_backward(chunked_wkv6, inputs, grad),
    }


def chunked_wkv7(r, log_w, k, v, a, b):
    """Return the output of `wkv7`, CHUNK tokens at a time by products of matrices, as plain torch is fast.

    Source: the chunked form of github.com/fla-org/flash-linear-attention, ops/rwkv7. Decays are bounded, so that the
    one between two tokens of a chunk is a quotient.
    """
    B, T, H, N = r.shape
    r, log_w, k, v, a, b = (x.transpose(1, 2).reshape(B * H, T // CHUNK, CHUNK, N) for x in (r, log_w, k, v, a, b))
    after = log_w.cumsum(2)
    end, shrink, grow = torch.exp(after[:, :, -1:]), torch.exp(after), torch.exp(-after)
    r, a, k, b = r * shrink, a * torch.exp(after - log_w), k * grow, b * grow
    lower = torch.ones(CHUNK, CHUNK).tril()
    strict = lower.tril(-1)
    solved, read_removed = torch.eye(CHUNK) - (a @ b.mT) * strict, (r @ b.mT) * lower
    erased, read = (a @ k.mT) * strict @ v, (r @ k.mT) * lower @ v
    k, b = k * end, b * end
    state, outputs = torch.zeros(B * H, N, N), []
    # not by index: the gradient of a part would be as large as the whole, for every chunk
    chunks = zip(*(x.unbind(1) for x in (r, k, v, a, b, end, solved, erased, read, read_removed)), strict=True)
    for r_chunk, k_chunk, v_chunk, a_chunk, b_chunk, decay, left, first, own, by_removed in chunks:
        drive = first + a_chunk @ state.mT
        removed = torch.linalg.solve_triangular(left, drive, upper=False, unitriangular=True)
        outputs.append(r_chunk @ state.mT + own + by_removed @ removed)
        state = state * decay + v_chunk.mT @ k_chunk + removed.mT @ b_chunk
    return torch.stack(outputs, 1).reshape(B, H, T, N).transpose(1, 2)


def wkv7_contenders() -> dict:
    shape = B, T, C // HEAD_SIZE, HEAD_SIZE
    r, k, v, direction = (torch.randn(shape) for _ in range(4))
    direction = torch.nn.functional.normalize(direction, dim=-1)
    log_w, rate = -(0.5**0.5) * torch.rand(shape), torch.rand(shape)
    inputs = tuple(x.requires_grad_() for x in (r, log_w, k / HEAD_SIZE**0.5, v, -direction, direction * rate))
    grad = torch.randn(shape)
    return {
        "wkv7": forward_backward(lambda *given: wkv7(*given, backend="numba")[0], inputs, grad),
        "wkv7_torch_loop": forward_backward(lambda *given: wkv7(*given, backend="reference")[0], inputs, grad),
        "wkv7_chunked": forward_backward(chunked_wkv7, inputs, grad),
    }


def check_lif(contenders: dict) -> None:
    """Raise unless both libraries emit our spikes and our gradient: what is compared must be the same thing.

    They add in another order, so that of four million potentials one may fall on the other side of the threshold;
    neurons where that happened are left out of the comparison of gradients.
    """
    spikes, (grad,) = contenders["lif"]()
    for name in ("spikingjelly", "snntorch"):
        their_spikes, (their_grad,) = contenders[name]()
        same = (their_spikes.transpose(0, 1) == spikes).all(dim=1)
        print(f"{name}: {(~same).sum().item()} of {same.numel()} neurons differ in a spike")
        assert (~same).sum() <= 4, f"{name}: other spikes"
        error = (their_grad.transpose(0, 1) - grad).abs().amax(dim=1)
        assert error[same].max() <= 1e-5 * grad.abs().max(), f"{name}: other gradient"


def check_wkv(contenders: dict) -> None:
    ours, *others = contenders
    output, grads = contenders[ours]()
    for other in others:
        wanted, wanted_grads = contenders[other]()
        for found, want in zip((output, *grads), (wanted, *wanted_grads), strict=True):
            assert (found - want).abs().max() <= 2e-5 * want.abs().max(), other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer repetitions, the same sizes")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    repetitions = 5 if arguments.quick else 20

    few = max(repetitions // 4, 3)
    times: dict[str, list[float]] = {}
    for contenders, check, rounds in (
        (lif_contenders(), check_lif, repetitions),
        (wkv_contenders(), check_wkv, repetitions),
        (wkv6_contenders(), check_wkv, few),
        (wkv7_contenders(), check_wkv, few),
    ):
        check(contenders)
        times |= alternate(contenders, rounds)

    # (numerator, denominator): above 1 ours is the faster one, but for the copies, which are less than it can be
    compared = {
        "lif_vs_spikingjelly": ("spikingjelly", "lif"),
        "lif_vs_snntorch": ("snntorch", "lif"),
        "lif_vs_copy": ("lif", "copy"),
        "lif_vs_fresh_copy": ("lif", "fresh_copy"),
        "wkv_vs_torch_loop": ("wkv_torch_loop", "wkv"),
        "wkv6_vs_torch_loop": ("wkv6_torch_loop", "wkv6"),
        "wkv6_vs_chunked": ("wkv6_chunked", "wkv6"),
        "wkv7_vs_torch_loop": ("wkv7_torch_loop", "wkv7"),
        "wkv7_vs_chunked": ("wkv7_chunked", "wkv7"),
    }
    ratios = {name: ratio(times[above], times[below]) for name, (above, below) in compared.items()}
    for name, seconds in times.items():
        median, fastest = statistics.median(seconds) * 1e3, min(seconds) * 1e3
        print(f"{name:20s} median {median:9.2f} ms   fastest {fastest:9.2f} ms")
    for name, found in ratios.items():
        print(
            f"{name:20s} median {found['median']:9.2f}      quartiles "
            f"{found['quartiles'][0]:.2f} to {found['quartiles'][1]:.2f}"
        )
    if not arguments.quick:
        command = f"python benchmarks/kernels.py --threads {arguments.threads}"
        write_result("kernels", {"command": command, "shape": [B, T, C], "ratios": ratios})
    print(json.dumps({name: found["median"] for name, found in ratios.items()}))


if __name__ == "__main__":
    main()
