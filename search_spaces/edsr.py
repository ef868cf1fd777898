"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

import acla_nas
from acla_nas.errors import AclaError
from acla_nas.search_spaces.layers import MeanShift, conv, upsampler
from acla_nas.search_spaces.registry import register

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace


class EDSR(nn.Module):
    """EDSR: residual blocks without batch normalisation; as published, then sub-pixel upsampling.

    At scale 1, for denoising and other tasks that keep the size, nothing is upsampled, and the network's
    input is added to its output (where both have as many channels), as in RNAN, so that it learns what is
    wrong with the image. The mean colour is shifted neither there nor where there are not 3 channels.

    Args:
        scale: output pixels per input pixel: 1, 2, 3 or 4.
        num_blocks: residual blocks, each a position ``body.<i>``.
        num_channels: of the features.
        residual_scale: factor on each block's branch; where None 0.1 from 256 channels on, else 1.
        image_range: the network computes on values 0 .. image_range; its input and output are 0 .. 1.
        in_channels: of the input: 3 for RGB, 1 for grey or luma.
        out_channels: of the output.

    Shape:
        (B, in_channels, H, W) in 0 .. 1 -> (B, out_channels, scale H, scale W).

    Raises:
        AclaError: a scale that is not 1, 2, 3 or 4, or no blocks or channels.

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
        in_channels: int = 3,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 3, 4):
            raise AclaError(f"scale {scale} is not one of EDSR's: use 1, 2, 3 or 4")
        for name, number in (
            ("num_blocks", num_blocks),
            ("num_channels", num_channels),
            ("in_channels", in_channels),
            ("out_channels", out_channels),
        ):
            if number < 1:
                raise AclaError(f"{name} {number} must be at least 1")
        if residual_scale is None:
            residual_scale = 0.1 if num_channels >= 256 else 1.0
        self.image_range = image_range
        self.adds_input = scale == 1 and in_channels == out_channels
        self.sub_mean = MeanShift(-image_range) if scale > 1 and in_channels == 3 else nn.Identity()
        self.add_mean = MeanShift(image_range) if scale > 1 and out_channels == 3 else nn.Identity()
        self.head = conv(in_channels, num_channels)
        self.body = nn.Sequential(*(_Block(num_channels, residual_scale) for _ in range(num_blocks)))
        self.body_end = conv(num_channels, num_channels)
        self.tail = nn.Sequential(*upsampler(scale, num_channels), conv(num_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored images."""
        features = self.head(self.sub_mean(x * self.image_range))
        features = features + self.body_end(self.body(features))
        restored = self.add_mean(self.tail(features)) / self.image_range
        return x + restored if self.adds_input else restored


class _Block(nn.Module):
    """Convolution, ReLU, convolution, added to the input."""

    def __init__(self, channels: int, residual_scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.layers(x)


@register
def edsr(
    scale: int = 2,
    num_blocks: int = 32,
    num_channels: int = 256,
    residual_scale: float | None = None,
    image_range: float = 255.0,
    in_channels: int = 3,
    out_channels: int = 3,
    **attention: Any,
) -> CrossLayerSpace:
    """Return the search space of EDSR: a position after each residual block.

    Args:
        scale: output pixels per input pixel: 2, 3 or 4; 1 for tasks that keep the size, such as denoising.
        num_blocks: residual blocks, 32 in the paper's super-resolution, 16 in its other tasks.
        num_channels: of the features, 256 in the paper's super-resolution.
        residual_scale: factor on each block's branch; where None 0.1 from 256 channels on, else 1.
        image_range: the network computes on values 0 .. image_range.
        in_channels: of the input: 3 for RGB, 1 for grey or luma.
        out_channels: of the output.
        attention: options of :class:`acla_nas.CrossLayerSpace`: attention, num_keys, ...

    Example:
        >>> space = edsr(scale=2, num_blocks=3, num_channels=8, attention="cla")
        >>> space.positions
        ('body.0', 'body.1', 'body.2')
    """
    attention.setdefault("input_shape", (in_channels, 48, 48))
    return acla_nas.CrossLayerSpace(
        lambda: EDSR(scale, num_blocks, num_channels, residual_scale, image_range, in_channels, out_channels),
        "body.*",
        **attention,
    )
