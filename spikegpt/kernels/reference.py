"""The definition of every kernel, in plain torch, written to be read.

Imports torch only. Slow on purpose: one loop over time. Gradients come from torch's autograd, so they are
independent of the hand-written backward passes of the fast versions that are tested against this file.
Equations: RWKV-4 WKV, github.com/BlinkDL/RWKV-LM (RWKV-v4neo); LIF, SpikingJelly's `LIFNode` conventions.
"""

import math

import torch
from torch import Tensor

SURROGATES = ("atan", "sigmoid", "fast_sigmoid", "rectangular")
RESETS = ("zero", "subtract")

# far below any exponent that a key can reach, and still finite in float32
EMPTY_EXPONENT = -1e38

# largest |key| and |time_first| of the event-driven WKV, whose weights are plain exponentials: e^20 is 5e8, e^-20 2e-9
EVENT_KEY_LIMIT = 20.0


def surrogate_derivative(distance: Tensor, surrogate: str, slope: float) -> Tensor:
    """Return the stand-in for the derivative of the Heaviside step, at `distance` = potential - threshold.

    `atan` and `sigmoid` are SpikingJelly's (its alpha is our slope), `fast_sigmoid` is snnTorch's;
    `rectangular` is `slope` inside a window of width 1/slope and 0 outside.
    """
    if surrogate == "atan":
        return slope / 2 / (1 + (math.pi / 2 * slope * distance) ** 2)
    if surrogate == "sigmoid":
        probability = torch.sigmoid(slope * distance)
        return slope * probability * (1 - probability)
    if surrogate == "fast_sigmoid":
        return 1 / (1 + slope * distance.abs()) ** 2
    if surrogate == "rectangular":
        return slope * (slope * distance.abs() <= 0.5).to(distance.dtype)
    raise ValueError(f"surrogate is {surrogate!r}; known: {', '.join(SURROGATES)}")


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, distance: Tensor, surrogate: str, slope: float) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.surrogate, ctx.slope = surrogate, slope
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (distance,) = ctx.saved_tensors
        return grad * surrogate_derivative(distance, ctx.surrogate, ctx.slope), None, None


def heaviside(distance: Tensor, surrogate: str = "atan", slope: float = 2.0) -> Tensor:
    """Return 1 where `distance` >= 0 and 0 elsewhere, with a surrogate derivative in the backward pass."""
    return _Heaviside.apply(distance, surrogate, slope)


def lif_step(
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    *,
    threshold: float,
    reset: str,
    reset_potential: float,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Return (spikes, membrane potential after the reset) of one step; every tensor is (B, C), the decay (C,).

    charge   potential <- membrane_decay * potential + (1 - membrane_decay) * reset_potential + gain * current
             with gain = 1 - membrane_decay if decay_input else 1
    fire     spike = potential >= threshold
    reset    "zero": potential <- reset_potential at a spike; "subtract": potential <- potential - threshold * spike
    """
    gain = 1 - membrane_decay if decay_input else torch.ones_like(membrane_decay)
    charged = membrane_decay * potential + gain * current
    if reset_potential != 0.0:
        charged = charged + (1 - membrane_decay) * reset_potential
    spikes = heaviside(charged - threshold, surrogate, slope)
    resetting = spikes.detach() if detach_reset else spikes
    if reset == "zero":
        return spikes, (1 - resetting) * charged + resetting * reset_potential
    return spikes, charged - threshold * resetting


def lif(current: Tensor, potential: Tensor, membrane_decay: Tensor, **options) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in the dtype of `current`, final membrane potential (B, C)): `lif_step` over time.

    current (B, T, C); potential (B, C) and membrane_decay (C,) in float32, or float64 with a float64 current.
    """
    spikes = []
    for drive in current.to(potential.dtype).unbind(dim=1):
        spike, potential = lif_step(drive, potential, membrane_decay, **options)
        spikes.append(spike)
    return torch.stack(spikes, dim=1).to(current.dtype), potential


class _CountSpikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, quanta: Tensor, levels: int, signed: bool) -> Tensor:
        ctx.save_for_backward(quanta)
        ctx.levels, ctx.signed = levels, signed
        spikes = torch.floor(quanta.abs()).clamp(max=levels)
        return torch.where(quanta < 0, -spikes if signed else torch.zeros_like(spikes), spikes)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (quanta,) = ctx.saved_tensors
        lowest = -(ctx.levels + 0.5) if ctx.signed else 0.5
        return grad * ((quanta >= lowest) & (quanta <= ctx.levels + 0.5)).to(grad.dtype), None, None


def count_spikes(quanta: Tensor, levels: int, signed: bool) -> Tensor:
    """Return how many unit spikes `quanta` thresholds' worth of potential are: whole thresholds, at most `levels`, with
    its sign.

    Below 0 nothing fires unless `signed` (ON/OFF pairs). Backward, straight through: derivative 1 from half a threshold
    below the lowest spike to half a threshold above the highest, 0 beyond. Unsigned with one level, that is the window
    of the rectangular surrogate with slope 1.
    """
    return _CountSpikes.apply(quanta, levels, signed)


def integer_lif_step(
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    threshold: Tensor,
    *,
    levels: int,
    signed: bool,
    reset: str,
    decay_input: bool,
) -> tuple[Tensor, Tensor]:
    """Return (spikes, membrane potential after the reset) of one step; current and potential (B, C), decay and
    threshold (C,).

    charge   potential <- membrane_decay * potential + gain * current,  gain = 1 - membrane_decay if decay_input else 1
    fire     spikes = whole thresholds in |potential|, at most `levels`, with the sign of the potential (`count_spikes`)
    reset    "subtract": potential <- potential - threshold * spikes;  "zero": potential <- 0 where a spike was
    A neuron that may fire `levels` times within one token, each time losing one threshold. No gradient flows through
    the reset: straight through, it would cancel what the potential carries.
    """
    gain = 1 - membrane_decay if decay_input else torch.ones_like(membrane_decay)
    charged = membrane_decay * potential + gain * current
    spikes = count_spikes(charged / threshold, levels, signed)
    if reset == "zero":
        return spikes, torch.where(spikes == 0, charged, torch.zeros_like(charged))
    return spikes, charged - (threshold * spikes).detach()


def integer_lif(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: Tensor, **options
) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in the dtype of `current`, final membrane potential (B, C)): `integer_lif_step` over
    time."""
    spikes = []
    for drive in current.to(potential.dtype).unbind(dim=1):
        spike, potential = integer_lif_step(drive, potential, membrane_decay, threshold, **options)
        spikes.append(spike)
    return torch.stack(spikes, dim=1).to(current.dtype), potential


def wkv(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    max_exponent: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator, max_exponent), each state (B, C).

    output_t = (sum_{i<t} exp(k_i - (t-1-i) e^time_decay) v_i + exp(time_first + k_t) v_t) / (the same without v).
    The true sums are numerator * exp(max_exponent) and denominator * exp(max_exponent). max_exponent is only the
    scale they are written in, so no gradient passes through it; the gradient of the output is exact all the same.
    """
    state_dtype = numerator.dtype
    # beyond 60 everything is forgotten in one step; an infinite decay would make the gradient NaN
    log_decay = -torch.exp(time_decay.to(state_dtype).clamp(max=60.0))
    time_first = time_first.to(state_dtype)
    max_exponent = max_exponent.detach()
    outputs = []
    for k, v in zip(key.to(state_dtype).unbind(dim=1), value.to(state_dtype).unbind(dim=1), strict=True):
        scale = torch.maximum(max_exponent, time_first + k).detach()
        past, present = torch.exp(max_exponent - scale), torch.exp(time_first + k - scale)
        outputs.append((past * numerator + present * v) / (past * denominator + present))

        scale = torch.maximum(max_exponent + log_decay, k).detach()
        past, present = torch.exp(max_exponent + log_decay - scale), torch.exp(k - scale)
        numerator = past * numerator + present * v
        denominator = past * denominator + present
        max_exponent = scale
    return torch.stack(outputs, dim=1).to(key.dtype), numerator, denominator, max_exponent


def event_wkv(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator), each state (B, C): the WKV of value
    spikes.

    A value spike is an event, and only there the key counts: `event_weight`. A token whose value is silent weighs 1,
    adds nothing to the numerator, and its key is never read:

        weight_t    = exp(key_t) where value_t != 0, else 1
        output_t    = (numerator + exp(time_first) weight_t value_t) / (denominator + exp(time_first) weight_t)
        numerator   <- decay * numerator + weight_t value_t,    decay = exp(-exp(time_decay))
        denominator <- decay * denominator + weight_t

    so that n silent tokens leave decay^n * numerator and decay^n * denominator + (1 + decay + ... + decay^(n-1)).
    The gradient is the exact one with the events held fixed: a silent value hears what a spike of weight 1 would have
    done (a surrogate), a silent key hears nothing.
    """
    decay = torch.exp(-torch.exp(time_decay.to(numerator.dtype).clamp(max=60.0)))
    first = torch.exp(time_first.to(numerator.dtype).clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT))
    outputs = []
    for k, v in zip(key.to(numerator.dtype).unbind(dim=1), value.to(numerator.dtype).unbind(dim=1), strict=True):
        weight = event_weight(k, v)
        outputs.append((numerator + first * weight * v) / (denominator + first * weight))
        numerator = decay * numerator + weight * v
        denominator = decay * denominator + weight
    return torch.stack(outputs, dim=1).to(key.dtype), numerator, denominator


def event_weight(key: Tensor, value: Tensor) -> Tensor:
    """Return exp(key), the key limited to +-EVENT_KEY_LIMIT, where `value` is a spike, and 1 where it is silent."""
    return torch.where(value != 0, torch.exp(key.clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT)), torch.ones_like(key))


def event_wkv_parallel(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor
) -> Tensor:
    """Return the output (B, T, C) of `event_wkv` without a recurrence: one (T, T) matrix of decays per channel."""
    steps = torch.arange(key.shape[1], device=key.device, dtype=numerator.dtype)
    log_decay = -torch.exp(time_decay.to(numerator.dtype).clamp(max=60.0))
    # token t sees token i < t decayed t - 1 - i times, and the state carried in t times
    elapsed = (steps.view(-1, 1) - 1 - steps).unsqueeze(-1)
    past = torch.where(elapsed >= 0, torch.exp(log_decay * elapsed.clamp(min=0)), torch.zeros_like(elapsed))
    carried = torch.exp(log_decay * steps.unsqueeze(-1))
    weight = event_weight(key, value).to(numerator.dtype)
    present = torch.exp(time_first.to(numerator.dtype).clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT)) * weight
    above = torch.einsum("tic,bic->btc", past, weight * value) + carried * numerator.unsqueeze(1) + present * value
    below = torch.einsum("tic,bic->btc", past, weight) + carried * denominator.unsqueeze(1) + present
    return (above / below).to(key.dtype)


def event_matvec(spikes: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return (N, out) in the dtype of `spikes`: the product spikes (N, in) @ weight (in, out), column j times scale[j].

    An input that fires n adds n times its row of the weight to every output; a silent one adds nothing, so that a
    finite row need not be read. weight in any dtype, scale (out,) as int8 weights have it. Sums in float32, or float64
    with float64 spikes.
    """
    real = torch.promote_types(spikes.dtype, torch.float32)
    total = spikes.to(real) @ weight.to(real)
    return (total if scale is None else total * scale).to(spikes.dtype)
