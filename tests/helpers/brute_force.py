"""What aten's operators cost, each by a loop over its definition: `ORACLES` maps a name to a function of one call.

Products are counted pair by pair from indicators of what is not 0, everything else by numbers that count what is done
to them. Nothing here knows the counter.
"""

import math

import brute_force_samplings as samplings
import numpy as np
from brute_force_products import attention, convolution, grouped_product, product
from brute_force_windows import adaptive_windows, fractional_windows, interpolation, windows
from counting_numbers import Complex, Real, apply, numbers
from torch import Tensor

# elementwise --------------------------------------------------------------------------------------------------------


def elementwise(function, *names):
    return lambda call: apply(function, *(call.numbers(name) for name in names))


def unary(function):
    return elementwise(function, "self")


def binary(function):
    return elementwise(function, "self", "other")


def sum_of(call):
    other = call.numbers("other")
    if call.args.get("alpha", 1) != 1:
        other = apply(lambda element, factor: element * factor, other, call.numbers("alpha"))
        # the factor multiplies before the sum is spread out
        spread = call.results[0].numel() // max(other.size, 1)
        for _ in range(spread - 1):
            apply(lambda element, factor: element * factor, call.numbers("other"), call.numbers("alpha"))
    return apply(lambda a, b: a + b, call.numbers("self"), other)


def compared(times):
    return lambda call: [number.compare(*range(times)) for number in numbers(call.results[0], call.done).flat]


def compared_inputs(call):
    """Comparisons give no complex result, however many parts they look at."""
    apply(lambda a, b: (a if isinstance(a, Complex) else b).compare(), call.numbers("self"), call.numbers("other"))


def chosen(call):
    return [number.choose(None) for number in numbers(call.results[0], call.done).flat]


def bounded(call):
    bounds = sum(call.args[name] is not None for name in ("min", "max"))
    return [number.compare(*range(bounds)) for number in numbers(call.results[0], call.done).flat if bounds]


def scaled_product(function):
    def oracle(call):
        def element(a, b, c):
            part = function(b, c)
            return a + (part * Real(call.done) if call.args["value"] != 1 else part)

        apply(element, *(call.numbers(name) for name in ("self", "tensor1", "tensor2")))

    return oracle


def power(call):
    exponent = call.args["exponent"]
    steps = {
        0: lambda x: x,
        1: lambda x: x,
        2: lambda x: x.square(),
        3: lambda x: x.square() * x,
        4: lambda x: x.square().square(),
        0.5: lambda x: x.sqrt(),
        -0.5: lambda x: x.rsqrt(),
        -1: lambda x: x / x,
        -2: lambda x: x / x.square(),
    }

    def general(x):
        return (x.log() * x).exp()

    is_number = isinstance(exponent, int | float) and isinstance(call.args["self"], Tensor)
    function = steps.get(exponent, general) if is_number else general
    return [function(number) for number in numbers(call.results[0], call.done).flat]


def gelu(x):
    return x * (x * x.tanh() + x) * x


def gelu_by_tanh(x):
    inner = (x + x * x * x * x) * x
    return x * x * (inner.tanh() + x)


def softplus(x):
    # log1p is one logarithm
    return x.compare().exp().log()


def gated(call):
    return [a * a.sigmoid() for a in numbers(call.results[0], call.done).flat]


# reductions ---------------------------------------------------------------------------------------------------------


def reduction(step, finish=None):
    """`step` for every input, `finish` for every result."""

    def oracle(call):
        for element in call.numbers("self").flat:
            step(call.new() if isinstance(element, Real) else element, element)
        for element in numbers(call.results[0], call.done).flat if finish else ():
            finish(element)

    return oracle


def _variance_step(total, x):
    # towards the mean; from it; the square; towards the variance
    total + x
    total + (x - total).square()


def log_softmax(call):
    x = call.numbers("self")
    for element in x.flat:
        # maximum, subtract, exp, sum; subtract the logarithm of the sum
        (element.compare() - element).exp() + element
        element - element
    length = x.shape[call.args["dim"]] if x.ndim else 1
    for _ in range(x.size // max(length, 1)):
        call.new().log()


def logsumexp(call):
    for element in call.numbers("self").flat:
        (element.compare() - element).exp() + element
    for row in numbers(call.results[0], call.done).flat:
        row.log() + row


def vector_norm(call):
    order = call.args.get("ord", call.args.get("p"))
    order = 2 if order is None else order
    steps = {
        2: lambda t, x: t + x * x,
        1: lambda t, x: t + abs(x),
        0: lambda t, x: t + x.compare(),
        math.inf: lambda t, x: abs(x).compare(),
    }
    return reduction(steps[abs(order)], (lambda row: row.sqrt()) if order == 2 else None)(call)


def norm_of_rows(call):
    x, rows = call.args["input"], call.results[1].numel()
    _normalise(call, x.numel(), rows, call.args["weight"] is not None, call.args["bias"] is not None)


def _normalise(call, elements, rows, has_weight, has_bias):
    for _ in range(elements):
        x = Real(call.done)
        x + x
        centred = x - x
        x + centred.square()
        y = centred * x
        y = y * x if has_weight else y
        y = y + x if has_bias else y
    for _ in range(rows):
        row = Real(call.done)
        # mean; variance, with eps
        row / row
        (row / row + row).rsqrt()


def batch_norm(call):
    x = call.args["input"]
    if not call.args.get("training", True):
        return apply(lambda number: number * number + number, call.numbers("input"))
    _normalise(call, x.numel(), x.shape[1], call.args["weight"] is not None, call.args["bias"] is not None)
    if call.args.get("running_mean") is not None:
        for _ in range(x.shape[1]):
            mean, variance = Real(call.done), Real(call.done)
            mean * mean + mean * mean
            variance = variance / variance
            variance * variance + variance * variance
    return None


def folded_batch_norm(call):
    return apply(lambda number: number * number + number, call.numbers("input"))


def rms_norm(call):
    for x in call.numbers("input").flat:
        x + x * x
        y = x * x
        y * x if call.args["weight"] is not None else y
    for row in numbers(call.results[1], call.done).flat:
        (row / row + row).rsqrt()


# scatters, sorts and others -----------------------------------------------------------------------------------------

STEPS = {
    "add": lambda t: t + t,
    "sum": lambda t: t + t,
    "mean": lambda t: t + t,
    "multiply": lambda t: t * t,
    "prod": lambda t: t * t,
    "amax": lambda t: t.compare(),
    "amin": lambda t: t.compare(),
}


def scatter(source):
    """One step for every number of `source` that is brought to the target."""

    def oracle(call):
        step = STEPS[call.args.get("reduce") or "add"]
        for _ in np.ndindex(*source(call.args)):
            target = call.new()
            step(target * Real(call.done) if call.args.get("alpha", 1) != 1 else target)
        if call.args.get("reduce") == "mean":
            apply(lambda element: element / Real(call.done), numbers(call.results[0], call.done))

    return oracle


def _places(args):
    target = np.zeros(tuple(args["self"].shape))
    indices = tuple(slice(None) if index is None else index.numpy() for index in args["indices"])
    return target[indices].shape


def sort(call):
    x, dim = call.args["self"], call.args["dim"]
    length = x.shape[dim] if x.dim() else 1
    for element in call.numbers("self").flat:
        for _ in range(math.ceil(math.log2(length)) if length else 0):
            element.compare()


def distances(call):
    for pair in numbers(call.results[0], call.done).flat:
        for _ in range(call.args["x1"].shape[-1]):
            pair + (pair - pair).square()
        pair.sqrt()


def squared_error(call):
    both = [call.numbers(name) for name in ("self", "target")]
    apply(lambda a, b: (a - b).square(), *both)
    for _ in range(np.broadcast(*both).size if call.args["reduction"] else 0):
        Real(call.done) + Real(call.done)
    if call.args["reduction"] == 1:
        Real(call.done) / Real(call.done)


def dropout(call):
    if call.args["train"] is not False:
        apply(lambda x: x.compare() * x, call.numbers("input"))


def _names(function, *names):
    return dict.fromkeys(names, function)


ORACLES = {
    **_names(sum_of, "add", "sub", "rsub"),
    **_names(unary(lambda x: -x), "neg"),
    "mul": binary(lambda a, b: a * b),
    **_names(binary(lambda a, b: a / b), "div", "remainder", "fmod", "floor_divide"),
    "reciprocal": unary(lambda x: x.inverse_times(None) if isinstance(x, Complex) else x / x),
    **_names(compared_inputs, "eq", "ne", "lt", "le", "gt", "ge"),
    **_names(
        compared(1),
        *("maximum", "minimum", "fmax", "fmin", "relu", "sign", "sgn", "clamp_min", "clamp_max", "floor", "ceil"),
        *("trunc", "isnan", "isinf", "isfinite", "isneginf", "isposinf", "signbit", "logical_and", "logical_or"),
        *("logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "threshold"),
        *("heaviside", "__and__", "__or__", "copysign"),
    ),
    "round": lambda call: apply(
        lambda x: (x * x).compare() / x if call.args.get("decimals") else x.compare(), call.numbers("self")
    ),
    "abs": unary(abs),
    "angle": unary(lambda x: x.trigonometric() if isinstance(x, Real) else x.real.trigonometric()),
    **_names(compared(2), "hardtanh", "relu6", "hardshrink"),
    "clamp": bounded,
    **_names(chosen, "where", "masked_fill", "tril", "triu"),
    **_names(unary(lambda x: x.exp()), "exp", "exp2", "expm1"),
    **_names(unary(lambda x: x.log()), "log", "log2", "log10", "log1p"),
    # the error function is counted as a tanh
    **_names(unary(lambda x: x.tanh()), "tanh", "erf", "erfc"),
    **_names(unary(lambda x: x.trigonometric()), "sin", "cos", "tan", "atan", "asin", "acos"),
    "atan2": binary(lambda a, b: a.trigonometric()),
    "sigmoid": unary(lambda x: x.sigmoid()),
    "sqrt": unary(lambda x: x.sqrt()),
    "rsqrt": unary(lambda x: x.rsqrt()),
    **_names(unary(lambda x: x * x), "deg2rad", "rad2deg"),
    "lerp": elementwise(lambda a, b, weight: a + (b - a) * weight, "self", "end", "weight"),
    "addcmul": scaled_product(lambda b, c: b * c),
    "addcdiv": scaled_product(lambda b, c: b / c),
    "pow": power,
    "silu": unary(lambda x: x * x.sigmoid()),
    "gelu": lambda call: apply(gelu_by_tanh if call.args["approximate"] == "tanh" else gelu, call.numbers("self")),
    "elu": unary(lambda x: (x.compare().exp() - x) * x),
    "celu": unary(lambda x: ((x.compare() / x).exp() - x) * x),
    **_names(unary(lambda x: x.compare() * x), "leaky_relu"),
    "_prelu_kernel": elementwise(lambda x, weight: x.compare() * weight, "self", "weight"),
    "softplus": unary(softplus),
    "log_sigmoid_forward": unary(lambda x: x.compare() - (-abs(x)).exp().log()),
    "hardsigmoid": unary(lambda x: (x + x).compare().compare() * x),
    "hardswish": unary(lambda x: (x + x).compare().compare() * x * x),
    "mish": unary(lambda x: x.exp().log().tanh() * x),
    "softshrink": unary(lambda x: x.compare().compare() + x),
    "glu": gated,
    "logit": unary(lambda x: (x / (x - x)).log()),
    "hypot": binary(lambda a, b: (a * a + b * b).sqrt()),
    "frac": unary(lambda x: x - x.compare()),
    "logaddexp": binary(lambda a, b: a.compare() + (-abs(a - b)).exp().log()),
    "linalg_cross": binary(lambda a, b: a * b - b * a),
    "nan_to_num": unary(lambda x: [x.compare().choose(None) for _ in range(3)]),
    **_names(
        samplings.fake_quantised, *(f"fake_quantize_per_{part}_affine_cachemask" for part in ("tensor", "channel"))
    ),
    "polar": lambda call: apply(
        lambda size, phase: (size * phase.trigonometric(), size * phase.trigonometric()),
        *(call.numbers(name) for name in ("abs", "angle")),
    ),
    **_names(unary(lambda x: -x.imaginary if isinstance(x, Complex) else x), "_conj_physical", "conj_physical"),
    **_names(reduction(lambda total, x: total + x), "sum", "nansum", "cumsum", "trace_of", "col2im", "bincount"),
    **_names(reduction(lambda total, x: total * x), "prod", "cumprod"),
    "mean": reduction(lambda total, x: total + x, lambda row: row / Real(row.done)),
    **_names(
        reduction(lambda total, x: x.compare()),
        *("amax", "amin", "max", "min", "argmax", "argmin", "any", "all", "count_nonzero", "nonzero"),
        *("cummax", "cummin", "topk"),
    ),
    "histc": reduction(lambda total, x: total + (x - x) * x),
    "aminmax": reduction(lambda total, x: x.compare().compare()),
    **_names(reduction(_variance_step, lambda row: (row / row) / row), "var", "var_mean"),
    **_names(reduction(_variance_step, lambda row: ((row / row) / row).sqrt()), "std", "std_mean"),
    "trace": lambda call: [call.new() + call.new() for _ in range(min(call.args["self"].shape))],
    **_names(unary(lambda x: (x.compare() - x).exp() / (x + x)), "_softmax", "_safe_softmax"),
    "_log_softmax": log_softmax,
    "logsumexp": logsumexp,
    **_names(vector_norm, "norm", "linalg_vector_norm"),
    **_names(norm_of_rows, "native_layer_norm", "native_group_norm"),
    **_names(batch_norm, "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update"),
    "_native_batch_norm_legit_no_training": folded_batch_norm,
    "_fused_rms_norm": rms_norm,
    **{f"max_pool{n}d_with_indices": windows(n, lambda t: t.compare()) for n in (2, 3)},
    **{f"avg_pool{n}d": windows(n, lambda t: t + t, lambda t: t / t) for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": adaptive_windows(n, lambda t: t + t, lambda t: t / t) for n in (2, 3)},
    **{f"adaptive_max_pool{n}d": adaptive_windows(n, lambda t: t.compare()) for n in (2, 3)},
    "upsample_linear1d": interpolation(1, 2),
    "upsample_bilinear2d": interpolation(2, 2),
    "upsample_trilinear3d": interpolation(3, 2),
    "upsample_bicubic2d": interpolation(2, 4),
    **_names(fractional_windows, "fractional_max_pool2d", "fractional_max_pool3d"),
    **_names(scatter(lambda args: args["index"].shape), "scatter", "scatter_add", "scatter_reduce", "put"),
    **_names(scatter(lambda args: args["source"].shape), "index_add", "index_reduce"),
    **_names(scatter(_places), "index_put", "_index_put_impl", "_unsafe_index_put"),
    **_names(samplings.grid_sampler, "grid_sampler_2d", "grid_sampler_3d"),
    "affine_grid_generator": samplings.affine_grid,
    "bernoulli": samplings.bernoulli,
    "normal": samplings.normal,
    "bucketize": samplings.search("boundaries"),
    "searchsorted": samplings.search("sorted_sequence"),
    **_names(samplings.nll_loss, "nll_loss_forward", "nll_loss2d_forward"),
    "binary_cross_entropy_with_logits": samplings.loss_of_logits,
    "sort": sort,
    "_cdist_forward": distances,
    "mse_loss": squared_error,
    "native_dropout": dropout,
    **_names(product(lambda a: a["self"], lambda a: a["mat2"]), "mm", "bmm", "_int_mm"),
    "addmm": product(lambda a: a["mat1"], lambda a: a["mat2"], True),
    **_names(product(lambda a: a["batch1"], lambda a: a["batch2"], True), "baddbmm", "addbmm"),
    "mv": product(lambda a: a["self"], lambda a: a["vec"][:, None]),
    "addmv": product(lambda a: a["mat"], lambda a: a["vec"][:, None], True),
    "addr": product(lambda a: a["vec1"][:, None], lambda a: a["vec2"][None, :], True),
    "dot": product(lambda a: a["self"][None, :], lambda a: a["tensor"][:, None]),
    "vdot": product(lambda a: a["self"][None, :], lambda a: a["other"][:, None]),
    "_grouped_mm": grouped_product,
    "convolution": convolution,
    # rows are fetched, nothing is computed
    "embedding": lambda call: None,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
}
