"""The layers that EDSR and its descendants share."""

from __future__ import annotations

import torch
from torch import nn

_MEAN_RGB = (0.4488, 0.4371, 0.4040)  # of DIV2K


class MeanShift(nn.Conv2d):
    """Adds the mean colour of DIV2K, scaled; a fixed convolution, as in the published networks.

    Args:
        factor: of the mean colour, whose values are 0 .. 1.

    Shape:
        (B, 3, H, W) -> (B, 3, H, W).

    Example:
        >>> MeanShift(-255.0).bias.shape
        torch.Size([3])
    """

    def __init__(self, factor: float) -> None:
        super().__init__(3, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.bias.copy_(factor * torch.tensor(_MEAN_RGB))  # type: ignore[union-attr]
        self.requires_grad_(False)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def upsampler(scale: int, channels: int) -> list[nn.Module]:
    """Return the layers that enlarge features by sub-pixel convolution: none at scale 1, two steps at 4."""
    steps = {1: [], 4: [2, 2]}.get(scale, [scale])
    return [layer for s in steps for layer in (conv(channels, channels * s * s), nn.PixelShuffle(s))]
