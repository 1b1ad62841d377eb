"""What one element of an elementwise operator costs, as tables: every rule can be read and disputed line by line.

Counts are of the operations as performed: a reduction of n elements is n additions, relu is one comparison. A sign
flip counts as an addition, an absolute value as a comparison. Matrix products are in `products.py`.
"""

from collections.abc import Mapping

from . import structured

# operator (without its overload and the _ of the in-place form) -> operations per output element
PER_OUTPUT: dict[str, dict[str, int]] = {
    **{name: {"add": 1} for name in ("add", "sub", "rsub", "neg", "cumsum")},
    **{name: {"mul": 1} for name in ("mul", "cumprod", "deg2rad", "rad2deg")},
    **{name: {"div": 1} for name in ("div", "reciprocal", "remainder", "fmod", "floor_divide")},
    **{
        name: {"compare": 1}
        for name in (
            *(
                "eq",
                "ne",
                "lt",
                "le",
                "gt",
                "ge",
                "maximum",
                "minimum",
                "fmax",
                "fmin",
                "relu",
                "abs",
                "sign",
                "sgn",
                "clamp_min",
            ),
            *(
                "clamp_max",
                "round",
                "floor",
                "ceil",
                "trunc",
                "isnan",
                "isinf",
                "isfinite",
                "isneginf",
                "isposinf",
                "signbit",
                "logical_and",
                "logical_or",
                "logical_not",
            ),
            *(
                "logical_xor",
                "bitwise_and",
                "bitwise_or",
                "bitwise_not",
                "bitwise_xor",
                "threshold",
                "heaviside",
                "copysign",
                "__and__",
                "__or__",
            ),
        )
    },
    **{name: {"compare": 2} for name in ("clamp", "hardtanh", "relu6")},
    **{name: {"select": 1} for name in ("where", "masked_fill", "tril", "triu")},
    **{name: {"exp": 1} for name in ("exp", "exp2", "expm1")},
    **{name: {"log": 1} for name in ("log", "log2", "log10", "log1p")},
    **{name: {"tanh": 1} for name in ("tanh", "erf", "erfc")},
    **{name: {"trigonometric": 1} for name in ("sin", "cos", "tan", "atan", "asin", "acos", "atan2")},
    "sigmoid": {"sigmoid": 1},
    "sqrt": {"sqrt": 1},
    "rsqrt": {"rsqrt": 1},
    "lerp": {"add": 2, "mul": 1},
    "addcmul": {"add": 1, "mul": 1},
    "addcdiv": {"add": 1, "div": 1},
    "silu": {"sigmoid": 1, "mul": 1},
    # x * Phi(x) by the error function, which is counted as a tanh; the tanh form is below
    "gelu": {"tanh": 1, "mul": 3, "add": 1},
    "elu": {"compare": 1, "exp": 1, "add": 1, "mul": 1},
    "leaky_relu": {"compare": 1, "mul": 1},
    "_prelu_kernel": {"compare": 1, "mul": 1},
    "softplus": {"compare": 1, "exp": 1, "log": 1},
    "hardsigmoid": {"compare": 2, "add": 1, "mul": 1},
    "hardswish": {"compare": 2, "add": 1, "mul": 2},
    "celu": {"compare": 1, "div": 1, "exp": 1, "add": 1, "mul": 1},
    "hardshrink": {"compare": 2},
    "softshrink": {"compare": 2, "add": 1},
    # min(x, 0) - log1p(exp(-|x|))
    "log_sigmoid_forward": {"compare": 2, "add": 2, "exp": 1, "log": 1},
    "glu": {"sigmoid": 1, "mul": 1},
    "logit": {"add": 1, "div": 1, "log": 1},
    "hypot": {"mul": 2, "add": 1, "sqrt": 1},
    "frac": {"compare": 1, "add": 1},
    # a product and one that is taken from it
    "linalg_cross": {"mul": 2, "add": 1},
    # max(a, b) + log1p(exp(-|a - b|))
    "logaddexp": {"compare": 2, "add": 3, "exp": 1, "log": 1},
    # NaN, and both infinities, one after the other
    "nan_to_num": {"compare": 3, "select": 3},
    # scaled, rounded, shifted, bounded, and back
    **{
        f"fake_quantize_per_{part}_affine_cachemask": {"mul": 2, "add": 2, "compare": 3}
        for part in ("tensor", "channel")
    },
    "mish": {"exp": 1, "log": 1, "tanh": 1, "mul": 1},
    # weighted sums of 2 or 4 neighbours, along one dimension after the other; the weights follow from the sizes alone
    "upsample_linear1d": {"mul": 2, "add": 1},
    "upsample_bilinear2d": {"mul": 6, "add": 3},
    "upsample_trilinear3d": {"mul": 14, "add": 7},
    "upsample_bicubic2d": {"mul": 20, "add": 15},
    # maximum, subtract, exp, sum, divide
    "_softmax": {"compare": 1, "add": 2, "exp": 1, "div": 1},
    "_safe_softmax": {"compare": 1, "add": 2, "exp": 1, "div": 1},
    "_log_softmax": {"compare": 1, "add": 3, "exp": 1},
}

# operator -> operations per input element
PER_INPUT: dict[str, dict[str, int]] = {
    **{name: {"add": 1} for name in ("sum", "nansum", "mean")},
    **{
        name: {"compare": 1}
        for name in (
            "amax",
            "amin",
            "max",
            "min",
            "argmax",
            "argmin",
            "any",
            "all",
            "count_nonzero",
            "nonzero",
            "cummax",
            "cummin",
        )
    },
    "prod": {"mul": 1},
    "var": {"add": 3, "mul": 1},
    "var_mean": {"add": 3, "mul": 1},
    "std": {"add": 3, "mul": 1},
    "std_mean": {"add": 3, "mul": 1},
    "aminmax": {"compare": 2},
    # each element is compared with the smallest of those that are kept
    "topk": {"compare": 1},
    # the bin of each element, by its distance from the first, and one more in it
    "histc": {"add": 2, "mul": 1},
    # overlapping blocks are added up
    "col2im": {"add": 1},
}

# operator -> operations per element of the smaller result: once per row of a norm, once per reduced value
PER_ROW: dict[str, dict[str, int]] = {
    "_log_softmax": {"log": 1},
    "mean": {"div": 1},
    "var": {"div": 2},
    "var_mean": {"div": 2},
    "std": {"div": 2, "sqrt": 1},
    "std_mean": {"div": 2, "sqrt": 1},
}

SOFTMAXES = ("_softmax", "_safe_softmax", "_log_softmax")


def has_rule(name: str) -> bool:
    """True if `elementwise` knows the operator."""
    return name == "pow" or name in PER_OUTPUT or name in PER_INPUT


def kind_of(name: str) -> str:
    """Return which of the kinds of work an operator with a rule here is."""
    return "norm" if name in structured.NORMS else "softmax" if name in SOFTMAXES else "elementwise"


def elementwise(name: str, args: tuple, kwargs: Mapping, inputs: int, outputs: int, rows: int) -> dict[str, int]:
    """Return class -> operations of one call of an operator that `has_rule`.

    `inputs` and `outputs` are elements of the first operand and result, `rows` of the smallest result that stands for a
    row.
    """
    per_output = _power(args) if name == "pow" else PER_OUTPUT.get(name, {})
    counts: dict[str, int] = {}
    per_element = (
        (per_output, outputs),
        (PER_INPUT.get(name, {}), inputs),
        (PER_ROW.get(name, {}), rows),
        (_extra(name, args, kwargs), outputs),
    )
    for table, elements in per_element:
        for operation, number in table.items():
            counts[operation] = counts.get(operation, 0) + number * elements
    return counts


def _power(args: tuple) -> dict[str, int]:
    exponent = args[1] if len(args) > 1 else None
    if not isinstance(exponent, int | float) or isinstance(args[0], int | float):
        return {"log": 1, "mul": 1, "exp": 1}
    known: dict[float, dict[str, int]] = {
        0: {},
        2: {"mul": 1},
        3: {"mul": 2},
        4: {"mul": 2},
        1: {},
        0.5: {"sqrt": 1},
        -0.5: {"rsqrt": 1},
        -1: {"div": 1},
        -2: {"mul": 1, "div": 1},
    }
    return known.get(exponent, {"log": 1, "mul": 1, "exp": 1})


def _extra(name: str, args: tuple, kwargs: Mapping) -> dict[str, int]:
    """What an option adds per element: a factor other than 1 is one more multiplication."""
    if name in ("add", "sub", "rsub") and kwargs.get("alpha", args[2] if len(args) > 2 else 1) != 1:
        return {"mul": 1}
    if name in ("addcmul", "addcdiv") and kwargs.get("value", 1) != 1:
        return {"mul": 1}
    if name == "gelu" and kwargs.get("approximate") == "tanh":
        return {"mul": 3, "add": 1}
    if name == "round" and kwargs.get("decimals"):
        return {"mul": 1, "div": 1}
    if name == "clamp":
        bounds = [*args[1:3], *(kwargs.get(bound) for bound in ("min", "max"))]
        return {"compare": sum(bound is not None for bound in bounds) - 2}
    return {}
