"""Memory that is used again from call to call: fresh memory of some megabytes costs as much as filling it."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_memory = threading.local()
_MOST = 1 << 30  # bytes that are kept of a name: what a single huge image took is given back


def scratch(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Return a tensor of arbitrary numbers on the CPU, which is overwritten when next asked for by this name.

    Each thread has its own, of the largest size that it asked for, for as long as it lives; more than a
    gigabyte is new each time, and not kept.

    Example:
        >>> first = scratch("example", torch.float32, 2, 3)
        >>> first.shape, scratch("example", torch.float32, 6).data_ptr() == first.data_ptr()
        (torch.Size([2, 3]), True)
    """
    size, key = math.prod(shape), f"{name} {dtype}"
    if size * dtype.itemsize > _MOST:
        return torch.empty(shape, dtype=dtype)
    kept: Tensor | None = getattr(_memory, key, None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = torch.empty(size, dtype=dtype)
        setattr(_memory, key, kept)
    return kept[:size].view(shape)
