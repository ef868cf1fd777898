"""Multiply-accumulates counted from the operations that run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: Callable[..., Any], *inputs: Any, **kwargs: Any) -> int:
    """Run a module, or any callable, as a training does and return the multiply-accumulates of its forward.

    Counted are convolutions, matrix products and attention, as PyTorch's own counter does, and besides
    them weighted row sums (``embedding_bag``), bilinear reads (``grid_sample``): four a value, and values
    that are picked (``index_select``), to be weighted. Products that are not summed, such as a gate times a
    feature, are not.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.rand(1, 3, 10, 10))
        21600
    """
    gathers, flops = _CountGathers(), FlopCounterMode(display=False)
    # The fused kernels of attention are not all known to PyTorch's counter; the plain form is. Without
    # gradients a module may multiply matrices of weights first, as ACLA does, and execute less.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), gathers, flops:
        module(*inputs, **kwargs)
    return gathers.macs + flops.get_total_flops() // 2


class _CountGathers(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function._schema.name
        if "embedding_bag" in name:
            self.macs += args[1].numel() * args[0].shape[1]
        elif "grid_sampler" in name:
            self.macs += out.numel() * 4
        elif "index_select" in name:
            self.macs += out.numel()
        return out
