"""Fast CPU version of `lif` and `wkv`, forward and backward, in numba; reached only through the two doors.

The equations are in `reference`; here is how they are run. One task is one batch row times up to BLOCK channels: time is the
outer loop, channels the inner one, so that LLVM turns the inner loop into vector instructions and the running state
stays in the first-level cache. The backward passes keep nothing from the forward pass but its inputs: they recompute
the states, SEGMENT steps at a time, into a scratch buffer that fits the cache, and walk back over it. Every task is
computed the same way by whichever thread takes it, so results do not depend on the number of threads.
"""

import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from .reference import SURROGATES

BLOCK = 512  # most channels of one task: long runs of memory, and the state of one step still fits the first-level cache
LIF_SEGMENT = 64  # steps recomputed at once: BLOCK * 4 bytes each, 128 KiB
WKV_SEGMENT = 16  # steps recomputed at once: BLOCK * 6 * 4 bytes each, 192 KiB
SMALL = 1 << 15  # neuron-steps below which starting a second thread costs more than it saves

ATAN, SIGMOID, FAST_SIGMOID, RECTANGULAR = (SURROGATES.index(name) for name in ("atan", "sigmoid", "fast_sigmoid", "rectangular"))
ZERO, ONE = np.float32(0), np.float32(1)
HALF_PI = np.float32(math.pi / 2)

# lif: every operation rounds as torch's does, so that spikes are bit-identical to the reference and to the recomputation
exact = numba.njit(cache=True, nogil=True, error_model="numpy")
# gradients and wkv: a multiplication and an addition may become one fused instruction; NaN and infinity keep their meaning
fused = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


def lif_forward(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: float, reset: str, reset_potential: float,
    decay_input: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (spikes (B, T, C) in the dtype of `current`, final membrane potential (B, C) float32)."""
    drive = as_float32(current)
    spikes, final = torch.empty_like(drive), torch.empty(potential.shape)
    arrays = as_arrays(drive, potential, membrane_decay, spikes, final)
    constants = _lif_scalars(threshold, reset, reset_potential, decay_input)
    run_tasks(_lif_forward_task, drive.shape, *arrays, *constants)
    return spikes.to(current.dtype), final


def lif_backward(
    grad_spikes: Tensor, grad_final: Tensor, current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: float,
    reset: str, reset_potential: float, decay_input: bool, detach_reset: bool, surrogate: str, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (current (B, T, C), potential (B, C), membrane_decay (C,))."""
    drive = as_float32(current)
    grad_current, grad_potential, grad_decay = torch.empty_like(drive), torch.empty(potential.shape), torch.empty(potential.shape)
    arrays = as_arrays(as_float32(grad_spikes), grad_final, drive, potential, membrane_decay, grad_current, grad_potential, grad_decay)
    constants = _lif_scalars(threshold, reset, reset_potential, decay_input)
    run_tasks(_lif_backward_task, drive.shape, *arrays, *constants, detach_reset, SURROGATES.index(surrogate), np.float32(slope))
    return grad_current.to(current.dtype), grad_potential, sum_over_batch(grad_decay)


def _lif_scalars(threshold: float, reset: str, reset_potential: float, decay_input: bool):
    """Return (threshold, keep, offset, rest, decay_input): a spike turns the potential into keep * potential + offset."""
    keep, offset = (1.0, -threshold) if reset == "subtract" else (0.0, reset_potential)
    return *map(np.float32, (threshold, keep, offset, reset_potential)), decay_input


def wkv_forward(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor,
    max_exponent: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator, max_exponent), the state in float32."""
    keys = as_float32(key)
    output, *state = torch.empty_like(keys), *(torch.empty(numerator.shape) for _ in range(3))
    arrays = as_arrays(log_decay(time_decay), time_first, keys, as_float32(value), numerator, denominator, max_exponent, output, *state)
    run_tasks(_wkv_forward_task, keys.shape, *arrays)
    return output.to(key.dtype), *state


def wkv_backward(
    grad_output: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, time_decay: Tensor, time_first: Tensor, key: Tensor,
    value: Tensor, numerator: Tensor, denominator: Tensor, max_exponent: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (time_decay, time_first, key, value, numerator, denominator)."""
    keys, decay = as_float32(key), log_decay(time_decay)
    grad_key, grad_value = torch.empty_like(keys), torch.empty_like(keys)
    # of the log decay, of time_first, of the incoming numerator and denominator: one row per batch row
    grads = [torch.empty(numerator.shape) for _ in range(4)]
    arrays = as_arrays(as_float32(grad_output), grad_numerator, grad_denominator, decay, time_first, keys, as_float32(value))
    arrays += as_arrays(numerator, denominator, max_exponent, grad_key, grad_value, *grads)
    run_tasks(_wkv_backward_task, keys.shape, *arrays)
    grad_decay, grad_first = sum_over_batch(grads[0]) * decay, sum_over_batch(grads[1])
    return grad_decay, grad_first, grad_key.to(key.dtype), grad_value.to(key.dtype), *grads[2:]


def log_decay(time_decay: Tensor) -> Tensor:
    """Return -exp(time_decay) kept finite, so that a gradient of 0 stays 0 when it is multiplied by it."""
    # numpy, for a threaded torch.exp of so few numbers can wait milliseconds for a second thread
    with np.errstate(over="ignore"):
        rate = torch.from_numpy(np.exp(time_decay.detach().float().numpy()))
    return -rate.clamp(max=torch.finfo(torch.float32).max)


def as_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def as_arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [as_float32(tensor).numpy() for tensor in tensors]


def sum_over_batch(partial: Tensor) -> Tensor:
    """Return the sum over the rows, added one after the other, whatever the number of threads."""
    return torch.from_numpy(partial.numpy().sum(axis=0))


_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def run_tasks(task, shape: tuple[int, int, int], *arguments) -> None:
    """Call `task(batch row, first channel, channels, *arguments)` for all rows and channels, on torch.get_num_threads() threads."""
    B, T, C = shape
    width, small = BLOCK, B * T * C <= SMALL
    # by the shape alone, never by the number of threads: the same rounding everywhere
    while not small and width > 64 and B * math.ceil(C / width) < 8:
        width //= 2
    tasks = deque((row, start) for row in range(B) for start in range(0, C, width))

    def work():
        while tasks:
            try:
                row, start = tasks.popleft()
            except IndexError:
                return
            task(row, start, width, *arguments)

    threads = 1 if small else min(torch.get_num_threads(), len(tasks))
    helpers = [helper_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


def helper_pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool of at least `threads` threads, made at first use and again in a forked process, where threads are gone."""
    global _pool
    if _pool is None or _pool[0] != os.getpid() or _pool[1] < threads:
        _pool = os.getpid(), threads, ThreadPoolExecutor(threads, thread_name_prefix="spikegpt")
    return _pool[2]


@exact
def _charge(decay, potential, gain, current, pull):
    return decay * potential + gain * current + pull


# rows of the working array of a lif task. One array, because LLVM gives up on a loop over many that might overlap,
# and made inside the task, because LLVM must see its constant row length
DECAY, GAIN, PULL, POTENTIAL, GRAD, GRAD_DECAY, DISTANCE, SLOPE = range(8)


@exact
def _fill_lif_lanes(lanes, decay, potential, rest, decay_input):
    for c in range(decay.size):
        lanes[DECAY, c] = decay[c]
        lanes[GAIN, c] = ONE - decay[c] if decay_input else ONE
        lanes[PULL, c] = (ONE - decay[c]) * rest
        lanes[POTENTIAL, c] = potential[c]


@exact
def _lif_forward_task(row, start, width, current, potential, decay, spikes, final, threshold, keep, offset, rest, decay_input):
    T, C = current.shape[1:]
    end = min(start + width, C)
    n = end - start
    lanes = np.zeros((8, BLOCK), np.float32)
    _fill_lif_lanes(lanes, decay[start:end], potential[row, start:end], rest, decay_input)
    for t in range(T):
        x, s = current[row, t, start:end], spikes[row, t, start:end]
        for c in range(n):
            charged = _charge(lanes[DECAY, c], lanes[POTENTIAL, c], lanes[GAIN, c], x[c], lanes[PULL, c])
            s[c] = ONE if charged >= threshold else ZERO
            lanes[POTENTIAL, c] = keep * charged + offset if charged >= threshold else charged
    final[row, start:end] = lanes[POTENTIAL, :n]


@exact
def _lif_recompute(x, before, lanes, threshold, keep, offset):
    """Store the potential before the step of input `x` in `before` and take the step."""
    for c in range(x.size):
        before[c] = lanes[POTENTIAL, c]
        charged = _charge(lanes[DECAY, c], lanes[POTENTIAL, c], lanes[GAIN, c], x[c], lanes[PULL, c])
        lanes[POTENTIAL, c] = keep * charged + offset if charged >= threshold else charged


@exact
def _lif_distance(x, before, lanes, threshold):
    for c in range(x.size):
        lanes[DISTANCE, c] = _charge(lanes[DECAY, c], before[c], lanes[GAIN, c], x[c], lanes[PULL, c]) - threshold


@fused
def _lif_backward_task(
    row, start, width, grad_spikes, grad_final, current, potential, decay, grad_current, grad_potential, grad_decay,
    threshold, keep, offset, rest, decay_input, detach_reset, surrogate, slope,
):  # fmt: skip
    T, C = current.shape[1:]
    end = min(start + width, C)
    n = end - start
    lanes = np.zeros((8, BLOCK), np.float32)
    _fill_lif_lanes(lanes, decay[start:end], potential[row, start:end], rest, decay_input)
    segments = (T + LIF_SEGMENT - 1) // LIF_SEGMENT
    # potential at the start of each segment; potential before each step of the segment at hand
    checkpoints = np.empty((segments, BLOCK), np.float32)
    before = np.empty((LIF_SEGMENT, BLOCK), np.float32)
    for segment in range(segments):
        checkpoints[segment, :n] = lanes[POTENTIAL, :n]
        if segment < segments - 1:
            for t in range(segment * LIF_SEGMENT, (segment + 1) * LIF_SEGMENT):
                _lif_recompute(current[row, t, start:end], before[0], lanes, threshold, keep, offset)
    lanes[GRAD, :n] = grad_final[row, start:end]
    own_input = ONE if decay_input else ZERO
    through_reset = ZERO if detach_reset else ONE
    for segment in range(segments - 1, -1, -1):
        first = segment * LIF_SEGMENT
        steps = min(LIF_SEGMENT, T - first)
        lanes[POTENTIAL, :n] = checkpoints[segment, :n]
        for i in range(steps):
            _lif_recompute(current[row, first + i, start:end], before[i], lanes, threshold, keep, offset)
        for i in range(steps - 1, -1, -1):
            x, v = current[row, first + i, start:end], before[i]
            gs, gx = grad_spikes[row, first + i, start:end], grad_current[row, first + i, start:end]
            _lif_distance(x, v, lanes, threshold)
            _surrogate_derivative(lanes[DISTANCE, :n], lanes[SLOPE, :n], surrogate, slope)
            for c in range(n):
                charged = lanes[DISTANCE, c] + threshold
                jump = through_reset * (keep * charged + offset - charged)
                kept = keep * lanes[GRAD, c] if lanes[DISTANCE, c] >= ZERO else lanes[GRAD, c]
                grad_charged = kept + (gs[c] + lanes[GRAD, c] * jump) * lanes[SLOPE, c]
                gx[c] = lanes[GAIN, c] * grad_charged
                lanes[GRAD_DECAY, c] += grad_charged * (v[c] - own_input * x[c] - rest)
                lanes[GRAD, c] = lanes[DECAY, c] * grad_charged
    grad_potential[row, start:end] = lanes[GRAD, :n]
    grad_decay[row, start:end] = lanes[GRAD_DECAY, :n]


@fused
def _surrogate_derivative(distance, out, surrogate, slope):
    n = distance.size
    if surrogate == ATAN:
        height, steepness = slope / np.float32(2), HALF_PI * slope
        for c in range(n):
            scaled = steepness * distance[c]
            out[c] = height / (ONE + scaled * scaled)
    elif surrogate == SIGMOID:
        for c in range(n):
            small = exp_nonpositive(-abs(slope * distance[c]))
            out[c] = slope * small / ((ONE + small) * (ONE + small))
    elif surrogate == FAST_SIGMOID:
        for c in range(n):
            scaled = ONE + slope * abs(distance[c])
            out[c] = ONE / (scaled * scaled)
    else:
        for c in range(n):
            out[c] = slope if slope * abs(distance[c]) <= np.float32(0.5) else ZERO


LOG2_E = np.float32(math.log2(math.e))
# ln 2 in two parts: the product of the first with a small whole number is exact
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# adding it rounds to a whole number n and leaves n + 127, the biased exponent of 2^n, in the low bits
ROUNDER = np.float32(3 * 2**22 + 127)
P2, P3, P4, P5, P6 = (np.float32(1 / math.factorial(i)) for i in range(2, 7))
LOWEST = np.float32(-88)  # exp of it is below the smallest normal float32; comes out as 0


@fused
def exp_nonpositive(x):
    """Return exp(x) for x <= 0, to about 1 unit in the last place; 0 below -87.7; NaN for NaN."""
    # written so that NaN passes the clamp
    x = LOWEST if x < LOWEST else x
    shifted = x * LOG2_E + ROUNDER
    whole = shifted - ROUNDER
    rest = x - whole * LN2_HIGH
    rest = rest - whole * LN2_LOW
    power = np.int32(np.float32(shifted).view(np.int32) << np.int32(23)).view(np.float32)
    series = P5 + rest * P6
    series = P4 + rest * series
    series = P3 + rest * series
    series = P2 + rest * series
    series = ONE + rest * series
    return power * (ONE + rest * series)


@fused
def _weights(past_exponent, present_exponent):
    """Return exp of both, divided by the larger one: one of the two is 1, so there is one exponential to compute."""
    small = exp_nonpositive(-abs(past_exponent - present_exponent))
    return (ONE, small) if past_exponent >= present_exponent else (small, ONE)


# rows of the working array of a wkv task
NUMERATOR, DENOMINATOR, MAX_EXPONENT, LOG_DECAY, TIME_FIRST = range(5)


@fused
def _fill_wkv_lanes(lanes, log_decay, time_first, numerator, denominator, max_exponent):
    n = log_decay.size
    lanes[NUMERATOR, :n], lanes[DENOMINATOR, :n], lanes[MAX_EXPONENT, :n] = numerator, denominator, max_exponent
    lanes[LOG_DECAY, :n], lanes[TIME_FIRST, :n] = log_decay, time_first


@fused
def _wkv_forward_task(
    row, start, width, log_decay, time_first, key, value, numerator, denominator, max_exponent,
    output, last_numerator, last_denominator, last_exponent,
):  # fmt: skip
    T, C = key.shape[1:]
    end = min(start + width, C)
    n = end - start
    state = numerator[row, start:end], denominator[row, start:end], max_exponent[row, start:end]
    lanes = np.empty((5, BLOCK), np.float32)
    _fill_wkv_lanes(lanes, log_decay[start:end], time_first[start:end], *state)
    for t in range(T):
        k, v, y = key[row, t, start:end], value[row, t, start:end], output[row, t, start:end]
        for c in range(n):
            a, b, p = lanes[NUMERATOR, c], lanes[DENOMINATOR, c], lanes[MAX_EXPONENT, c]
            past, present = _weights(p, lanes[TIME_FIRST, c] + k[c])
            y[c] = (past * a + present * v[c]) / (past * b + present)
            decayed = p + lanes[LOG_DECAY, c]
            past, present = _weights(decayed, k[c])
            lanes[NUMERATOR, c] = past * a + present * v[c]
            lanes[DENOMINATOR, c] = past * b + present
            lanes[MAX_EXPONENT, c] = decayed if decayed >= k[c] else k[c]
    last_numerator[row, start:end] = lanes[NUMERATOR, :n]
    last_denominator[row, start:end] = lanes[DENOMINATOR, :n]
    last_exponent[row, start:end] = lanes[MAX_EXPONENT, :n]


# what the way forward keeps of each step for the way back: the state before it, its share and the present token's in the
# output (weight / sum of weights), and their weights in the next state
BEFORE_NUMERATOR, BEFORE_DENOMINATOR, PAST_SHARE, PRESENT_SHARE, PAST, PRESENT = range(6)
# rows of the gradients carried back
G_NUMERATOR, G_DENOMINATOR, G_LOG_DECAY, G_TIME_FIRST = range(4)


@fused
def _wkv_backward_task(
    row, start, width, grad_output, grad_numerator, grad_denominator, log_decay, time_first, key, value,
    numerator, denominator, max_exponent, grad_key, grad_value, grad_decay, grad_first, grad_numerator_in, grad_denominator_in,
):  # fmt: skip
    T, C = key.shape[1:]
    end = min(start + width, C)
    n = end - start
    state = numerator[row, start:end], denominator[row, start:end], max_exponent[row, start:end]
    lanes = np.empty((5, BLOCK), np.float32)
    _fill_wkv_lanes(lanes, log_decay[start:end], time_first[start:end], *state)
    segments = (T + WKV_SEGMENT - 1) // WKV_SEGMENT
    # the state at the start of each segment
    checkpoints = np.empty((segments, 3, BLOCK), np.float32)
    for segment in range(segments):
        checkpoints[segment, :, :n] = lanes[:3, :n]
        if segment == segments - 1:
            break
        for t in range(segment * WKV_SEGMENT, (segment + 1) * WKV_SEGMENT):
            k, v = key[row, t, start:end], value[row, t, start:end]
            for c in range(n):
                decayed = lanes[MAX_EXPONENT, c] + lanes[LOG_DECAY, c]
                past, present = _weights(decayed, k[c])
                lanes[NUMERATOR, c] = past * lanes[NUMERATOR, c] + present * v[c]
                lanes[DENOMINATOR, c] = past * lanes[DENOMINATOR, c] + present
                lanes[MAX_EXPONENT, c] = decayed if decayed >= k[c] else k[c]

    kept = np.empty((WKV_SEGMENT, 6, BLOCK), np.float32)
    grads = np.zeros((4, BLOCK), np.float32)
    grads[G_NUMERATOR, :n], grads[G_DENOMINATOR, :n] = grad_numerator[row, start:end], grad_denominator[row, start:end]
    for segment in range(segments - 1, -1, -1):
        first = segment * WKV_SEGMENT
        steps = min(WKV_SEGMENT, T - first)
        lanes[:3, :n] = checkpoints[segment, :, :n]
        for i in range(steps):
            k, v, step = key[row, first + i, start:end], value[row, first + i, start:end], kept[i]
            for c in range(n):
                a, b, p = lanes[NUMERATOR, c], lanes[DENOMINATOR, c], lanes[MAX_EXPONENT, c]
                past, present = _weights(p, lanes[TIME_FIRST, c] + k[c])
                inverse = ONE / (past * b + present)
                step[BEFORE_NUMERATOR, c] = a
                step[BEFORE_DENOMINATOR, c] = b
                step[PAST_SHARE, c] = past * inverse
                step[PRESENT_SHARE, c] = present * inverse
                decayed = p + lanes[LOG_DECAY, c]
                past, present = _weights(decayed, k[c])
                step[PAST, c] = past
                step[PRESENT, c] = present
                lanes[NUMERATOR, c] = past * a + present * v[c]
                lanes[DENOMINATOR, c] = past * b + present
                lanes[MAX_EXPONENT, c] = decayed if decayed >= k[c] else k[c]
        for i in range(steps - 1, -1, -1):
            v, gy, step = value[row, first + i, start:end], grad_output[row, first + i, start:end], kept[i]
            gk, gv = grad_key[row, first + i, start:end], grad_value[row, first + i, start:end]
            for c in range(n):
                a, b, ga, gb = step[BEFORE_NUMERATOR, c], step[BEFORE_DENOMINATOR, c], grads[G_NUMERATOR, c], grads[G_DENOMINATOR, c]
                y = step[PAST_SHARE, c] * a + step[PRESENT_SHARE, c] * v[c]
                g_past, g_present = gy[c] * step[PAST_SHARE, c], gy[c] * step[PRESENT_SHARE, c]
                g_boosted_key = g_present * (v[c] - y)
                gk[c] = g_boosted_key + step[PRESENT, c] * (ga * v[c] + gb)
                gv[c] = g_present + step[PRESENT, c] * ga
                grads[G_TIME_FIRST, c] += g_boosted_key
                grads[G_LOG_DECAY, c] += step[PAST, c] * (ga * a + gb * b)
                grads[G_NUMERATOR, c] = step[PAST, c] * ga + g_past
                grads[G_DENOMINATOR, c] = step[PAST, c] * gb - g_past * y
    grad_decay[row, start:end] = grads[G_LOG_DECAY, :n]
    grad_first[row, start:end] = grads[G_TIME_FIRST, :n]
    grad_numerator_in[row, start:end] = grads[G_NUMERATOR, :n]
    grad_denominator_in[row, start:end] = grads[G_DENOMINATOR, :n]
