"""The head. Of a large vocabulary the likeliest tokens are found by codes of its weights, and they alone are read.

With codes q and steps s of weights w, input a and the differences d = w - s q, a token's logit is a·w = s (a·q) + a·d,
and |a·d| <= |a| |d|. So a token whose s (a·q) + |a| |d| is less than the k-th largest s (a·q) - |a| |d| is none of the
k likeliest. Codes are a quarter of the bytes. The logits of the others are those that all would have, to the last bit.
"""

import numpy as np
import torch

from ...model.quantised import quantise
from .clock import NEURONS, NORM, PRODUCTS, mark
from .heaps import clear, offer
from .pages import in_huge_pages
from .parts import fire, layer_norm, list_inputs, multiply_listed
from .rows import Product, Screen
from .sums import sum_rows
from .team import columns, fused

# tokens of a vocabulary above which its head is worth two readings
LARGE_VOCABULARY = 16_384
# a column is read by itself in so many times the time that it takes among all
ALONE = 64
# rows of the head whose differences are calculated at once
TOGETHER = 4096
# columns whose codes lie together, where all are read: so a run of them is one piece of memory
BLOCK = 256
# sums of n numbers in float32 err by less than n units in the last place of the sum of their sizes, each of three ways
ROUNDING = 3 * 2.0**-23


def is_screened(head: Product, wanted: int) -> bool:
    """Return whether codes are read of a packed `head` first: of many tokens few are wanted, and it is made of real
    numbers."""
    _, inputs, outputs = head.weights.shape
    return outputs >= LARGE_VOCABULARY and wanted <= inputs and head.weights.dtype != np.int8


def screen_of(head: Product, wanted: int, place: int) -> Screen | None:
    """Return what finds the `wanted` likeliest tokens of a packed `head`, whose weights are real; None if some are not
    finite, so that nothing follows from them."""
    _, inputs, outputs = head.weights.shape
    width = outputs if head.reads_spikes else BLOCK
    blocks, steps = -(-outputs // width), np.empty((1, outputs), np.float32)
    codes = torch.zeros(blocks * width, inputs, dtype=torch.int8)
    doubt = np.empty(outputs, head.weights.dtype if head.weights.dtype == np.float64 else np.float32)
    for start in range(0, outputs, TOGETHER):
        some = slice(start, start + TOGETHER)
        weights = _as_numbers(head.weights[0, :, some]).T
        found = quantise(weights.float(), 8)
        exact, step = weights.double(), found.step.double()
        left = (exact - found.codes.double() * step[:, None]).norm(dim=1)
        doubt[some] = (left + (inputs + 8) * ROUNDING * exact.norm(dim=1)).numpy()
        steps[0, some], codes[:outputs][some] = found.step.numpy(), found.codes
    if not np.isfinite(doubt).all():
        return None
    # the bound itself is rounded too
    doubt *= 1.001
    in_blocks = in_huge_pages(codes.view(blocks, width, inputs).transpose(1, 2).contiguous().numpy())
    return Screen(Product(in_blocks, steps, place, head.reads_spikes), doubt, wanted)


def _as_numbers(stored: np.ndarray) -> torch.Tensor:
    if stored.dtype == np.uint16:
        return torch.from_numpy(np.ascontiguousarray(stored).view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(stored)


@fused
def _multiply_codes(codes, work, first, last, out):
    lists, (blocks, _, width) = work.scratch, codes.weights.shape
    for block in range(first // width, blocks):
        start = block * width
        begin, end = max(first - start, 0), min(last - start, width)
        if begin >= end:
            break
        sum_rows(
            codes.weights[block],
            codes.reads_spikes,
            lists.active,
            lists.amount,
            lists.listed,
            0,
            begin,
            end,
            out,
            start,
        )
    for text in range(out.shape[0]):
        for v in range(first, last):
            out[text, v] *= codes.scales[0, v]
    mark(work.clock, PRODUCTS + codes.place)


@fused
def _length(amount, n):
    total = np.float64(0)
    for place in range(n):
        total += np.float64(amount[place]) * np.float64(amount[place])
    return amount.dtype.type(np.sqrt(total))


@fused
def _surely(near, doubt, length, heap):
    """Return a number that as many logits as the heap has places surely reach; -inf if there are fewer."""
    clear(heap)
    for v in range(near.size):
        offer(heap, near[v] - length * doubt[v])
    return heap[0]


@fused
def multiply_candidates(screen, head, work, first, last, logits):
    """Write own columns of the logits of the inputs listed, -inf where they are surely not among the likeliest.

    Of own columns: so many are in them at most, and nobody waits for another thread.
    """
    _multiply_codes(screen.codes, work, first, last, logits)
    lists, heap = work.scratch, work.scratch.z[: screen.wanted]
    doubt = screen.doubt[first:last]
    for text in range(logits.shape[0]):
        near, one = logits[text, first:last], slice(text, text + 1)
        active, amount, listed, out = lists.active[one], lists.amount[one], lists.listed[one], logits[one]
        length = _length(amount[0, 0], listed[0, 0])
        least, candidates = _surely(near, doubt, length, heap), 0
        for v in range(near.size):
            candidates += near[v] + length * doubt[v] >= least
        is_few = candidates * ALONE <= near.size and length < np.inf
        if not is_few:
            sum_rows(head.weights[0], head.reads_spikes, active, amount, listed, 0, first, last, out, 0)
            continue
        for v in range(near.size):
            if near[v] + length * doubt[v] >= least:
                column = first + v
                sum_rows(head.weights[0], head.reads_spikes, active, amount, listed, 0, column, column + 1, out, 0)
            else:
                near[v] = -np.inf


@fused
def end_token(network, work, logits):
    """Write the logits of the next tokens."""
    first, last = columns(logits.shape[1], work.team)
    for text in range(logits.shape[0]):
        y = work.scratch.y[text]
        layer_norm(work.shared.stream[text], network.ln_out.weight[0], network.ln_out.bias[0], y)
        mark(work.clock, NORM)
        fire(network.head_neuron, 0, text, y, 0, y.size)
        mark(work.clock, NEURONS)
    for text in range(logits.shape[0]):
        list_inputs(network.head, 0, text, work.scratch.y[text], work, 0)
    _multiply_head(network.screen, network.head, work, first, last, logits)


@fused
def _multiply_head(screen, head, work, first, last, logits):
    # numba leaves out what is never reached only where an argument is None
    if screen is None:
        multiply_listed(head, 0, 0, work, first, last, logits, 0)
    else:
        multiply_candidates(screen, head, work, first, last, logits)
