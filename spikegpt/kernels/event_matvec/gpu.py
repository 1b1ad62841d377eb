"""The event-driven matrix-vector product on CUDA: allocates what cuda/event_matvec.cu writes and launches it.

Reached only through its door.
"""

import torch
from torch import Tensor

from .. import gpu

# of cuda/event_matvec.cu: inputs that are looked at together; LANES threads serve LANES * COLUMNS outputs
SEGMENT, LANES, COLUMNS = 32, 32, 8
# each has up to 32 weights on the way: together the 1 to 4 MB that keep a fast memory busy
ENOUGH_THREADS = 1 << 15
KERNELS = {torch.float32: "gather_rows_float32", torch.bfloat16: "gather_rows_bfloat16", torch.int8: "gather_rows_int8"}


def event_matvec_forward(spikes: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return spikes (N, in) @ weight (in, out), times `scale` (out,) if given, as (N, out) in the dtype of `spikes`."""
    (N, inputs), outputs = spikes.shape, weight.shape[1]
    threads = -(-outputs // (LANES * COLUMNS)) * LANES
    slices, slice_inputs = cut_inputs(inputs, threads)
    partial = torch.empty(slices, N, outputs, device=spikes.device)
    y = torch.empty(N, outputs, dtype=spikes.dtype, device=spikes.device)
    tensors = spikes.contiguous(), weight.contiguous(), partial
    grid = (threads, slices, N)
    gpu.launch("event_matvec", KERNELS[weight.dtype], spikes.dtype, grid, *tensors, inputs, outputs, slice_inputs)
    scale = scale if scale is None else scale.contiguous()
    gpu.launch("event_matvec", "sum_slices", spikes.dtype, N * outputs, partial, scale, y, N * outputs, outputs, slices)
    return y


def cut_inputs(inputs: int, threads: int) -> tuple[int, int]:
    """Return (slices, inputs of a slice): enough threads in all, with `threads` per slice; the batch has no say."""
    segments = -(-inputs // SEGMENT)
    wanted = min(max(ENOUGH_THREADS // threads, 1), segments)
    slice_segments = -(-segments // wanted)
    return -(-segments // slice_segments), slice_segments * SEGMENT
