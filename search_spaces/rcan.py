"""RCAN (Zhang et al., "Image Super-Resolution Using Very Deep ... Channel Attention Networks", ECCV 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

import acla_nas
from acla_nas.errors import AclaError
from acla_nas.search_spaces.layers import MeanShift, conv, upsampler
from acla_nas.search_spaces.registry import register

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace


class RCAN(nn.Module):
    """RCAN as published: groups of residual blocks that weigh their channels, then sub-pixel upsampling.

    Args:
        scale: output pixels per input pixel: 2, 3 or 4.
        num_groups: residual groups, each a position ``body.<i>``.
        num_blocks: residual blocks of each group.
        num_channels: of the features.
        reduction: how many times fewer channels a block's channel attention has inside.
        image_range: the network computes on values 0 .. image_range; its input and output are 0 .. 1.

    Shape:
        (B, 3, H, W) in 0 .. 1 -> (B, 3, scale H, scale W).

    Raises:
        AclaError: a scale that is not 2, 3 or 4; no groups, blocks or channels; or a reduction that leaves
            the channel attention no channel.

    Example:
        >>> network = RCAN(scale=2, num_groups=1, num_blocks=1, num_channels=8, reduction=4)
        >>> network(torch.rand(1, 3, 6, 5)).shape
        torch.Size([1, 3, 12, 10])
    """

    def __init__(
        self,
        scale: int = 2,
        num_groups: int = 10,
        num_blocks: int = 20,
        num_channels: int = 64,
        reduction: int = 16,
        image_range: float = 255.0,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise AclaError(f"scale {scale} is not one of RCAN's: use 2, 3 or 4")
        for name, number in (
            ("num_groups", num_groups),
            ("num_blocks", num_blocks),
            ("num_channels", num_channels),
        ):
            if number < 1:
                raise AclaError(f"{name} {number} must be at least 1")
        if not 1 <= reduction <= num_channels:
            raise AclaError(f"reduction {reduction} must be between 1 and num_channels, {num_channels}")
        self.image_range = image_range
        self.sub_mean = MeanShift(-image_range)
        self.add_mean = MeanShift(image_range)
        self.head = conv(3, num_channels)
        self.body = nn.Sequential(*(_Group(num_channels, num_blocks, reduction) for _ in range(num_groups)))
        self.body_end = conv(num_channels, num_channels)
        self.tail = nn.Sequential(*upsampler(scale, num_channels), conv(num_channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored images."""
        features = self.head(self.sub_mean(x * self.image_range))
        features = features + self.body_end(self.body(features))
        return self.add_mean(self.tail(features)) / self.image_range


class _Group(nn.Module):
    """Residual blocks and a convolution, added to the input."""

    def __init__(self, channels: int, num_blocks: int, reduction: int) -> None:
        super().__init__()
        blocks = (_Block(channels, reduction) for _ in range(num_blocks))
        self.layers = nn.Sequential(*blocks, conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _Block(nn.Module):
    """Convolution, ReLU, convolution, channel attention, added to the input."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(channels, channels),
            nn.ReLU(),
            conv(channels, channels),
            _ChannelAttention(channels, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _ChannelAttention(nn.Module):
    """Multiplies each channel by a factor in 0 .. 1 that is computed from all channels' means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.factors = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors(x)  # (B, C, 1, 1)


@register
def rcan(
    scale: int = 2,
    num_groups: int = 10,
    num_blocks: int = 20,
    num_channels: int = 64,
    reduction: int = 16,
    image_range: float = 255.0,
    **attention: Any,
) -> CrossLayerSpace:
    """Return the search space of RCAN: a position after each residual group.

    Args:
        scale: output pixels per input pixel: 2, 3 or 4.
        num_groups: residual groups, 10 in the paper.
        num_blocks: residual blocks of each group, 20 in RCAN's paper.
        num_channels: of the features, 64 in RCAN's paper.
        reduction: how many times fewer channels a block's channel attention has inside.
        image_range: the network computes on values 0 .. image_range.
        attention: options of :class:`acla_nas.CrossLayerSpace`: attention, num_keys, ...

    Example:
        >>> space = rcan(num_groups=3, num_blocks=1, num_channels=8, reduction=4, attention="cla")
        >>> space.positions
        ('body.0', 'body.1', 'body.2')
    """
    return acla_nas.CrossLayerSpace(
        lambda: RCAN(scale, num_groups, num_blocks, num_channels, reduction, image_range),
        "body.*",
        **attention,
    )
