"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import acla_nas
from acla_nas.errors import AclaError
from acla_nas.search_spaces.registry import register

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace

_MEAN_RGB = (0.4488, 0.4371, 0.4040)  # of DIV2K


class EDSR(nn.Module):
    """EDSR as published: residual blocks without batch normalisation, then sub-pixel upsampling.

    Args:
        scale: output pixels per input pixel: 2, 3 or 4.
        num_blocks: residual blocks, each a position ``body.<i>``.
        num_channels: of the features.
        residual_scale: factor on each block's branch; where None 0.1 from 256 channels on, else 1.
        image_range: the network computes on values 0 .. image_range; its input and output are 0 .. 1.

    Shape:
        (B, 3, H, W) in 0 .. 1 -> (B, 3, scale H, scale W).

    Raises:
        AclaError: a scale that is not 2, 3 or 4, or no blocks or channels.

    Example:
        >>> network = EDSR(scale=2, num_blocks=1, num_channels=8)
        >>> network(torch.rand(1, 3, 6, 5)).shape
        torch.Size([1, 3, 12, 10])
    """

    def __init__(
        self,
        scale: int = 2,
        num_blocks: int = 32,
        num_channels: int = 256,
        residual_scale: float | None = None,
        image_range: float = 255.0,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise AclaError(f"scale {scale} is not one of EDSR's: use 2, 3 or 4")
        if num_blocks < 1 or num_channels < 1:
            raise AclaError(f"num_blocks {num_blocks} and num_channels {num_channels} must be at least 1")
        if residual_scale is None:
            residual_scale = 0.1 if num_channels >= 256 else 1.0
        self.image_range = image_range
        self.sub_mean = _MeanShift(-image_range)
        self.add_mean = _MeanShift(image_range)
        self.head = _conv(3, num_channels)
        self.body = nn.Sequential(*(_Block(num_channels, residual_scale) for _ in range(num_blocks)))
        self.body_end = _conv(num_channels, num_channels)
        self.tail = nn.Sequential(*_upsampler(scale, num_channels), _conv(num_channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored images."""
        x = self.head(self.sub_mean(x * self.image_range))
        x = x + self.body_end(self.body(x))
        return self.add_mean(self.tail(x)) / self.image_range


class _Block(nn.Module):
    """Convolution, ReLU, convolution, added to the input."""

    def __init__(self, channels: int, residual_scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(channels, channels), nn.ReLU(), _conv(channels, channels))
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.layers(x)


class _MeanShift(nn.Conv2d):
    """Adds the mean colour of DIV2K, scaled; a fixed convolution, as in the published network."""

    def __init__(self, factor: float) -> None:
        super().__init__(3, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.bias.copy_(factor * torch.tensor(_MEAN_RGB))  # type: ignore[union-attr]
        self.requires_grad_(False)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _upsampler(scale: int, channels: int) -> list[nn.Module]:
    steps = [2, 2] if scale == 4 else [scale]
    return [layer for s in steps for layer in (_conv(channels, channels * s * s), nn.PixelShuffle(s))]


@register
def edsr(
    scale: int = 2,
    num_blocks: int = 32,
    num_channels: int = 256,
    residual_scale: float | None = None,
    image_range: float = 255.0,
    **attention: Any,
) -> CrossLayerSpace:
    """Return the search space of EDSR: a position after each residual block.

    Args:
        scale: output pixels per input pixel: 2, 3 or 4.
        num_blocks: residual blocks, 32 in the paper's super-resolution.
        num_channels: of the features, 256 in the paper's super-resolution.
        residual_scale: factor on each block's branch; where None 0.1 from 256 channels on, else 1.
        image_range: the network computes on values 0 .. image_range.
        attention: options of :class:`acla_nas.CrossLayerSpace`: attention, num_keys, ...

    Example:
        >>> space = edsr(scale=2, num_blocks=3, num_channels=8, attention="cla")
        >>> space.positions
        ('body.0', 'body.1', 'body.2')
    """
    return acla_nas.CrossLayerSpace(
        lambda: EDSR(scale, num_blocks, num_channels, residual_scale, image_range), "body.*", **attention
    )
