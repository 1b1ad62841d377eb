"""How close a fast kernel must come to what it is compared with: one table, one comparison."""

import torch
from torch import Tensor

# largest difference allowed, as a fraction of the largest entry
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def assert_close(
    found: Tensor, wanted: Tensor, dtype: torch.dtype = torch.float32, tolerance: float | None = None
) -> None:
    """Assert the same shape, the same dtype, no difference above that allowed for `dtype`, or above `tolerance`."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    found, wanted = found.double(), wanted.double()
    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    assert (found - wanted).abs().max() <= allowed * max(wanted.abs().max().item(), 1e-6)
