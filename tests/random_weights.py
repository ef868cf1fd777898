"""Random weights for networks under test, those that start at zero included; the same every time."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def randomize(module: M, scale: float, seed: int = 0) -> M:
    """Draw all parameters from a normal distribution of this standard deviation, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module
