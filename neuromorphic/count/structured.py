"""Operators whose cost depends on more than the number of their elements: norms, windows, scatters, sorts, losses.

Each rule takes the arguments of one call by the names of torch's schema, and its results, and returns class ->
operations; None where it knows no cost for these arguments, so that the call is listed. Conventions as in `rules.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Operations = dict[str, int]
Rule = Callable[[Mapping[str, Any], Sequence[Tensor]], Operations | None]

# norms ----------------------------------------------------------------------------------------------------------------


def norm_of_rows(arguments: Mapping[str, Any], elements: int, rows: int) -> Operations:
    """Layer and group norm: mean, centred squares, scale; then weight and bias, where there are any."""
    has_weight, has_bias = arguments.get("weight") is not None, arguments.get("bias") is not None
    return {
        # sum, subtract, sum of squares, bias; eps
        "add": (3 + has_bias) * elements + rows,
        # square, scale, weight
        "mul": (2 + has_weight) * elements,
        "div": 2 * rows,
        "rsqrt": rows,
    }


def rms_norm(arguments: Mapping[str, Any], elements: int, rows: int) -> Operations:
    """Sum of squares, scale and weight; nothing is subtracted."""
    has_weight = arguments.get("weight") is not None
    return {"add": elements + rows, "mul": (2 + has_weight) * elements, "div": rows, "rsqrt": rows}


def batch_norm(arguments: Mapping[str, Any], elements: int, rows: int) -> Operations:
    """With the statistics of a training it is folded to one factor and one term; else it is a norm over the batch.

    The running statistics that a training keeps cost, for each channel, two sums and four products, and the division
    that makes the variance unbiased.
    """
    is_training = arguments.get("training", "momentum" in arguments)
    if not is_training:
        return {"add": elements, "mul": elements}
    counts = norm_of_rows(arguments, elements, rows)
    if arguments.get("running_mean") is not None:
        for operation, number in (("add", 2), ("mul", 4), ("div", 1)):
            counts[operation] += number * rows
    return counts


NORMS: dict[str, Callable[[Mapping[str, Any], int, int], Operations]] = {
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), norm_of_rows),
    "_fused_rms_norm": rms_norm,
    **dict.fromkeys(
        (
            *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit"),
            *("_native_batch_norm_legit_functional", "_batch_norm_with_update"),
        ),
        batch_norm,
    ),
    **dict.fromkeys(
        ("_native_batch_norm_legit_no_training", "_batch_norm_no_update"),
        lambda arguments, elements, rows: {"add": elements, "mul": elements},
    ),
}


def rows_of_norm(name: str, results: Sequence[Tensor], x: Tensor) -> int:
    """Return how many means a norm computes: one for each channel, or as many as it returns."""
    return x.shape[1] if "batch_norm" in name else results[1].numel()


# windows --------------------------------------------------------------------------------------------------------------


def _wide(sizes: int | Sequence[int], dimensions: int) -> list[int]:
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return sizes * dimensions if len(sizes) == 1 else sizes


def _met_by_windows(arguments: Mapping[str, Any], result: Tensor, dimensions: int) -> int:
    """Return how many inputs all windows of a pooling meet together, its padding left out."""
    kernel = _wide(arguments["kernel_size"], dimensions)
    stride = _wide(arguments["stride"] or kernel, dimensions)
    padding, dilation = _wide(arguments["padding"], dimensions), _wide(arguments.get("dilation", 1), dimensions)
    lengths, outputs = arguments["self"].shape[-dimensions:], result.shape[-dimensions:]
    met = result.shape[:-dimensions].numel()
    for K, s, p, d, length, output in zip(kernel, stride, padding, dilation, lengths, outputs, strict=True):
        met *= sum(0 <= o * s - p + k * d < length for o in range(output) for k in range(K))
    return met


def _met_by_adaptive_windows(x: Tensor, result: Tensor, dimensions: int) -> int:
    """The same of windows from floor(o L / O) to ceil((o + 1) L / O), which may overlap."""
    met = result.shape[:-dimensions].numel()
    for length, output in zip(x.shape[-dimensions:], result.shape[-dimensions:], strict=True):
        met *= sum(-(-(o + 1) * length // output) - o * length // output for o in range(output))
    return met


def _max_pool(dimensions: int) -> Rule:
    return lambda arguments, results: {"compare": _met_by_windows(arguments, results[0], dimensions)}


def _avg_pool(dimensions: int) -> Rule:
    return lambda arguments, results: {
        "add": _met_by_windows(arguments, results[0], dimensions),
        "div": results[0].numel(),
    }


def _adaptive_max_pool(dimensions: int) -> Rule:
    return lambda arguments, results: {
        "compare": _met_by_adaptive_windows(arguments["self"], results[0], dimensions),
    }


def _adaptive_avg_pool(dimensions: int) -> Rule:
    return lambda arguments, results: {
        "add": _met_by_adaptive_windows(arguments["self"], results[0], dimensions),
        "div": results[0].numel(),
    }


def _fractional_max_pool(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    return {"compare": results[0].numel() * math.prod(arguments["kernel_size"])}


# scatters -------------------------------------------------------------------------------------------------------------

REDUCTIONS = {
    **dict.fromkeys(("add", "sum", "mean"), "add"),
    **dict.fromkeys(("multiply", "prod"), "mul"),
    **dict.fromkeys(("amax", "amin"), "compare"),
}


def scattered(name: str, arguments: Mapping[str, Any]) -> int:
    """Return how many numbers a scatter brings to its target."""
    if name in ("index_put", "_index_put_impl", "_unsafe_index_put"):
        target = torch.empty((), device=arguments["self"].device).expand(arguments["self"].shape)
        return torch.ops.aten.index(target, arguments["indices"]).numel()
    return arguments["source" if name in ("index_add", "index_reduce") else "index"].numel()


def is_reduction(arguments: Mapping[str, Any]) -> bool:
    """True if what is scattered is added, multiplied or compared, and not only written."""
    return bool(arguments.get("accumulate")) or arguments.get("reduce") is not None


def _scatter(name: str) -> Rule:
    def rule(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
        number = scattered(name, arguments)
        counts = {REDUCTIONS[arguments.get("reduce") or "add"]: number}
        if arguments.get("alpha", 1) != 1:
            counts["mul"] = number
        if arguments.get("reduce") == "mean":
            counts["div"] = results[0].numel()
        return counts

    return rule


SCATTERS = (
    *("scatter", "scatter_add", "scatter_reduce", "index_add", "index_reduce"),
    *("index_put", "_index_put_impl", "_unsafe_index_put", "put"),
)

# looking up in weights ------------------------------------------------------------------------------------------------

GATHERS = frozenset(("index", "_unsafe_index", "index_select", "gather", "take", "masked_select"))


def rows_looked_up(name: str, args: tuple) -> Tensor | None:
    """Return the ids of the rows that an operator of GATHERS looks up, if it looks up whole rows."""
    if name == "index_select" and args[1] == 0:
        return args[2]
    if name in ("index", "_unsafe_index"):
        first, *others = args[1]
        is_rows = (
            first is not None
            and first.dtype not in (torch.bool, torch.uint8)
            and not any(index is not None for index in others)
        )
        return first if is_rows else None
    return None


def looked_up(name: str, args: tuple) -> Tensor:
    """Return, for every number of a weight, how many numbers an operator of GATHERS needs of it: 1 or 0.

    Dimensions that are taken whole stand for their product.
    """
    table, *rest = args
    shape = list(table.shape)
    if name in ("index", "_unsafe_index"):
        at, whole = 0, set(range(table.dim()))
        for index in rest[0]:
            width = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
            whole -= set(range(at, at + width)) if index is not None else set()
            at += width
        shape = [1 if place in whole else length for place, length in enumerate(shape)]
    elif name == "index_select":
        shape = [length if place == rest[0] % table.dim() else 1 for place, length in enumerate(shape)]
    places = torch.arange(math.prod(shape), device=table.device).reshape(shape)
    touched = torch.zeros(places.numel(), dtype=torch.int64, device=table.device)
    touched[getattr(torch.ops.aten, name)(places, *rest).flatten()] = table.numel() // max(places.numel(), 1)
    return touched


# samplings ------------------------------------------------------------------------------------------------------------

BILINEAR, NEAREST, ZEROS, BORDER = 0, 1, 0, 1


def _grid_sampler(dimensions: int) -> Rule:
    def rule(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations | None:
        """Each place of the grid becomes a place in the input; its neighbours are weighed, once for all channels."""
        mode, padding = arguments["interpolation_mode"], arguments["padding_mode"]
        if mode not in (BILINEAR, NEAREST) or padding not in (ZEROS, BORDER):
            return None
        coordinates, numbers = arguments["grid"].numel(), results[0].numel()
        places, corners = coordinates // dimensions, 2**dimensions
        # scaled and shifted; rounded; held within the borders
        counts = {"mul": coordinates, "add": coordinates, "compare": coordinates * (1 + 2 * (padding == BORDER))}
        is_bilinear = mode == BILINEAR
        if padding == ZEROS:
            # is each neighbour of a coordinate inside?
            counts["compare"] += 2 * coordinates * (1 + is_bilinear)
        if is_bilinear:
            # how far it is from both neighbours; the weight of a corner is a product of these
            counts["add"] += 2 * coordinates + (corners - 1) * numbers
            counts["mul"] += corners * (dimensions - 1) * places + corners * numbers
        return counts

    return rule


def _affine_grid(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    """A sum over the coordinates of each place, and a shift."""
    number = results[0].numel() * results[0].shape[-1]
    return {"mul": number, "add": number}


def _bernoulli(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    """What was drawn is compared with the probability."""
    return {"compare": results[0].numel()}


def _normal(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    """What was drawn is scaled and shifted, by numbers of its own for each."""
    number = results[0].numel()
    return {
        "mul": number * isinstance(arguments["std"], Tensor),
        "add": number * isinstance(arguments["mean"], Tensor),
    }


def _bucketize(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    """Each number is searched by halves among n boundaries: log2(n + 1) comparisons, rounded up."""
    boundaries = arguments.get("boundaries", arguments.get("sorted_sequence"))
    return {"compare": results[0].numel() * boundaries.shape[-1].bit_length()}


# sorts, sums and distances --------------------------------------------------------------------------------------------


def _sort(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    """n log2 n comparisons of each row, rounded up."""
    x, dim = arguments["self"], arguments["dim"]
    return {"compare": x.numel() * max(x.shape[dim] - 1, 0).bit_length() if x.dim() else 0}


def _logsumexp(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    """Maximum, subtract, exp and sum of each element; logarithm and maximum of each row."""
    elements, rows = arguments["self"].numel(), results[0].numel()
    return {"compare": elements, "add": 2 * elements + rows, "exp": elements, "log": rows}


def _vector_norm(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations | None:
    order = arguments.get("ord", arguments.get("p"))
    order = 2 if order is None else order
    elements, rows = arguments["self"].numel(), results[0].numel()
    if order == 2:
        return {"mul": elements, "add": elements, "sqrt": rows}
    if order == 1 or order == 0:
        return {"compare": elements, "add": elements}
    return {"compare": 2 * elements} if math.isinf(order) else None


def _cdist(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations | None:
    """Euclidean distances of all pairs: subtract, square and sum."""
    if arguments["p"] != 2:
        return None
    pairs = results[0].numel()
    elements = pairs * arguments["x1"].shape[-1]
    return {"add": 2 * elements, "mul": elements, "sqrt": pairs}


def _mse_loss(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    elements = torch.broadcast_shapes(arguments["self"].shape, arguments["target"].shape).numel()
    # 0 returns the squares, 1 their mean, 2 their sum
    reduction = arguments["reduction"]
    return {"add": (1 + (reduction != 0)) * elements, "mul": elements, "div": int(reduction == 1)}


def _nll_loss(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations | None:
    """Each target is looked at, for it may be ignored, and its sign is turned; then as in `_mse_loss`."""
    if arguments["weight"] is not None:
        return None
    targets, reduction = arguments["target"].numel(), arguments["reduction"]
    return {"compare": targets, "add": (1 + (reduction != 0)) * targets, "div": int(reduction == 1)}


def _logits_loss(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations | None:
    """(1 - y) * x - log(sigmoid(x)), the logarithm as in `rules.py`; then as in `_mse_loss`."""
    if arguments["weight"] is not None or arguments["pos_weight"] is not None:
        return None
    elements, reduction = arguments["self"].numel(), arguments["reduction"]
    return {
        "compare": 2 * elements,
        "add": (4 + (reduction != 0)) * elements,
        "mul": elements,
        "exp": elements,
        "log": elements,
        "div": int(reduction == 1),
    }


def _dropout(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    number = results[0].numel() if arguments["train"] is not False else 0
    return {"compare": number, "mul": number}


def _bincount(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    return {"add": arguments["self"].numel()}


def _trace(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> Operations:
    return {"add": min(arguments["self"].shape)}


STRUCTURED: dict[str, Rule] = {
    **{f"max_pool{dimensions}d_with_indices": _max_pool(dimensions) for dimensions in (2, 3)},
    **{f"avg_pool{dimensions}d": _avg_pool(dimensions) for dimensions in (1, 2, 3)},
    **{f"_adaptive_avg_pool{dimensions}d": _adaptive_avg_pool(dimensions) for dimensions in (2, 3)},
    **{f"adaptive_max_pool{dimensions}d": _adaptive_max_pool(dimensions) for dimensions in (2, 3)},
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), _fractional_max_pool),
    **{name: _scatter(name) for name in SCATTERS},
    **{f"grid_sampler_{dimensions}d": _grid_sampler(dimensions) for dimensions in (2, 3)},
    "affine_grid_generator": _affine_grid,
    "bernoulli": _bernoulli,
    "normal": _normal,
    **dict.fromkeys(("bucketize", "searchsorted"), _bucketize),
    "sort": _sort,
    "logsumexp": _logsumexp,
    **dict.fromkeys(("norm", "linalg_vector_norm"), _vector_norm),
    "_cdist_forward": _cdist,
    "mse_loss": _mse_loss,
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), _nll_loss),
    "binary_cross_entropy_with_logits": _logits_loss,
    "native_dropout": _dropout,
    "bincount": _bincount,
    "trace": _trace,
}
