"""What aten's products cost, pair by pair: from indicators of what is not 0, and attention head by head."""

import math

import numpy as np
import torch
from counting_numbers import Complex, Real, apply, numbers
from torch import Tensor
from torch.nn import functional as F


def pairs(x, w):
    """Count products of x (..., N, K) and w (..., K, M): (all, those of two nonzeros); complex ones by their parts."""
    x, w = (side.float().numpy() if side.dtype == torch.bfloat16 else side.numpy() for side in (x, w))
    if np.iscomplexobj(x) or np.iscomplexobj(w):
        parts = [(part(x), other(w)) for part in (np.real, np.imag) for other in (np.real, np.imag)]
    else:
        parts = [(x, w)]
    dense = effective = 0
    for left, right in parts:
        dense += int((np.ones(left.shape, np.int64) @ np.ones(right.shape, np.int64)).sum())
        effective += int(((left != 0).astype(np.int64) @ (right != 0).astype(np.int64)).sum())
    return dense, effective


def product(x, w, is_scaled=False):
    def oracle(call):
        args = {name: value.resolve_conj() if isinstance(value, Tensor) else value for name, value in call.args.items()}
        call.done["dense"], call.done["effective"] = pairs(x(args), w(args))
        if is_scaled:
            for element in numbers(call.results[0], call.done).flat:
                for name in ("alpha", "beta"):
                    if args[name] not in (0, 1):
                        element * (Complex if isinstance(args[name], complex) else Real)(call.done)
                if args["beta"] != 0:
                    element + element

    return oracle


def convolution(call):
    args = call.args
    x, w = args["input"], args["weight"]
    options = {"stride": args["stride"], "padding": args["padding"], "dilation": args["dilation"]}
    if args["transposed"]:
        options["output_padding"] = args["output_padding"]
    convolve = getattr(F, f"conv{'_transpose' if args['transposed'] else ''}{x.dim() - 2}d")
    for name, ones in (("dense", torch.ones_like), ("effective", lambda t: t != 0)):
        output = convolve(ones(x).double(), ones(w).double(), groups=args["groups"], **options)
        call.done[name] = round(output.sum().item())
    if args["bias"] is not None:
        apply(lambda element: element + element, numbers(call.results[0], call.done))


def attention(call):
    """Scores, softmax and weighted values, head by head, as if the parts were operators."""
    args = call.args
    q, k, v, mask = args["query"], args["key"], args["value"], args["attn_mask"]
    T, S = q.shape[2], k.shape[2]
    scale = q.shape[3] ** -0.5 if args["scale"] is None else args["scale"]
    for b, h in np.ndindex(*q.shape[:2]):
        group = h * k.shape[1] // q.shape[1]
        # torch's own eager attention computes scores of half precision in float32
        queries, keys, values = q[b, h].float(), k[b, group].float(), v[b, group].float()
        visible = torch.ones(T, S, dtype=torch.bool).tril() if args["is_causal"] else torch.ones(T, S, dtype=torch.bool)
        scores = (queries @ keys.T * scale).masked_fill(~visible, -math.inf)
        if mask is not None:
            scores = scores + mask.expand(*q.shape[:2], T, S)[b, h]
        probabilities = scores.softmax(1).nan_to_num(0.0)
        for t, s in zip(*np.nonzero(visible.numpy()), strict=True):
            call.done["dense"] += queries.shape[1] + values.shape[1]
            call.done["effective"] += int(((queries[t] != 0) & (keys[s] != 0)).sum())
            call.done["effective"] += int((values[s] != 0).sum()) if probabilities[t, s] != 0 else 0
            score = Real(call.done) * None
            score = score + score if mask is not None else score
            # maximum, subtract, exp, sum, divide
            (score.compare() - score).exp() + score
            score / score


def grouped_product(call):
    x, w, ends = call.args["self"], call.args["mat2"], call.args["offs"]
    dense = effective = start = 0
    for group, end in enumerate(ends.tolist()) if ends is not None else ():
        part, start = slice(start, end), end
        if x.dim() == 2 and w.dim() == 2:
            found = pairs(x[:, part].float(), w[part].float())
        else:
            rows = x[part] if x.dim() == 2 else x[group]
            found = pairs(rows.float(), (w[group] if w.dim() == 3 else w[:, part]).float())
        dense, effective = dense + found[0], effective + found[1]
    if ends is None:
        dense, effective = pairs(x.float(), w.float())
    call.done["dense"], call.done["effective"] = dense, effective
