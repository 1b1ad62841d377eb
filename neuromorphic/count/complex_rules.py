"""What one element of an elementwise operator costs in real operations, where its numbers are complex.

A complex sum is two real ones, a product four products and two sums. What is not here has no rule for complex numbers.
"""

from torch import Tensor

PRODUCT = {"mul": 4, "add": 2}

PER_OUTPUT: dict[str, dict[str, int]] = {
    **{name: {"add": 2} for name in ("add", "sub", "rsub", "neg", "cumsum")},
    "cumprod": PRODUCT,
    # a b* / |b|^2: the product, the square of b's size, two quotients
    "reciprocal": {"mul": 2, "add": 2, "div": 2},
    **{name: {"compare": 2} for name in ("eq", "ne")},
    **{name: {"select": 2} for name in ("where", "masked_fill", "tril", "triu")},
    **{name: {"add": 1} for name in ("conj_physical", "_conj_physical")},
    "abs": {"mul": 2, "add": 1, "sqrt": 1},
    "angle": {"trigonometric": 1},
    "exp": {"exp": 1, "trigonometric": 2, "mul": 2},
    "log": {"mul": 2, "add": 1, "sqrt": 1, "log": 1, "trigonometric": 1},
    "polar": {"trigonometric": 2, "mul": 2},
}

PER_INPUT: dict[str, dict[str, int]] = {
    **{name: {"add": 2} for name in ("sum", "nansum", "mean")},
    "prod": PRODUCT,
}

PER_ROW: dict[str, dict[str, int]] = {"mean": {"div": 2}}


def elementwise(name: str, args: tuple, kwargs: dict, inputs: int, outputs: int, rows: int) -> dict[str, int] | None:
    """Return class -> real operations of one call, None without a rule; sizes are numbers of complex elements."""
    if name in ("mul", "div") and not kwargs.get("rounding_mode"):
        per_output = _scaled(name, args[:2])
    elif name in PER_OUTPUT or name in PER_INPUT:
        per_output = PER_OUTPUT.get(name, {})
    else:
        return None
    counts: dict[str, int] = {}
    alpha = kwargs.get("alpha", args[2] if name in ("add", "sub", "rsub") and len(args) > 2 else 1)
    for table, elements in (
        (per_output, outputs),
        (PER_INPUT.get(name, {}), inputs),
        (PER_ROW.get(name, {}), rows),
        (factor(alpha), outputs),
    ):
        for operation, number in table.items():
            counts[operation] = counts.get(operation, 0) + number * elements
    return counts


def factor(value: complex) -> dict[str, int]:
    """Return what a factor of the program costs for each element; 1 costs nothing."""
    return {} if value == 1 else PRODUCT if isinstance(value, complex) else {"mul": 2}


def _scaled(name: str, args: tuple) -> dict[str, int]:
    """A product or quotient; by a real number it is one for each part."""
    left, right = (
        value.is_complex() if isinstance(value, Tensor) else isinstance(value, complex) for value in args[:2]
    )
    if name == "mul":
        return PRODUCT if left and right else {"mul": 2}
    if not right:
        return {"div": 2}
    return {"mul": 6, "add": 3, "div": 2} if left else {"mul": 4, "add": 2, "div": 2}
