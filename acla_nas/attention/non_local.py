"""Non-local attention (NL): Wang et al., "Non-local Neural Networks", CVPR 2018."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from acla_nas.attention.attention import Feature, OwnLayerAttention, projection
from acla_nas.errors import AclaError


class NonLocal(OwnLayerAttention):
    """The embedded-Gaussian non-local block, within its own layer (Eq. 1 and 2).

    With pixels i and n of the feature x, and every convolution 1x1 and without bias::

        y_i    = sum_n exp(theta x_i . phi x_n) g x_n / sum_n exp(theta x_i . phi x_n)
        update = W y

    theta, phi and g go from C to ``inner_channels``, W back to C; W starts at zero, so that insertion
    starts as the identity. As published, the dot product is not scaled: on large features, such as EDSR's
    for values of 0 .. 255, each pixel's weights start all but wholly on one other, and hardly any gradient
    reaches theta and phi. EDSR's ``image_range: 1`` avoids that.

    Time grows with the square of the number of pixels; PyTorch's fused attention keeps memory linear where
    it has a kernel. Meant for patches: a big image is restored in windows.

    Parameters: 4 C inner_channels. Four modules in EDSR (32 blocks, 256 channels) make 41.25 M with
    C / 2 inner channels and 41.78 M with C, where the paper's Table 4 has 43.56 M; no choice of inner width,
    1x1 or 3x3 kernels and biases gives that count, so the form is the one of Wang et al.

    Args:
        channels: C of the query feature.
        num_keys: 1, for every pixel is a key.
        reference_channels: not used: it refers to no other layer.
        inner_channels: of theta, phi and g; half of C, as published, where None.

    Raises:
        AclaError: inner_channels below 1, or num_keys other than 1.

    Example:
        >>> x = torch.randn(1, 8, 6, 6)
        >>> NonLocal(8)(x, {"1": x}).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        num_keys: int = 1,
        *,
        reference_channels: Mapping[str, int] | None = None,
        inner_channels: int | None = None,
    ) -> None:
        super().__init__(num_keys)
        self.inner_channels = inner_width(channels, inner_channels)
        self.theta = projection(channels, self.inner_channels)
        self.phi = projection(channels, self.inner_channels)
        self.g = projection(channels, self.inner_channels)
        self.out = projection(self.inner_channels, channels, zero=True)

    def update(self, query: Tensor) -> Tensor:
        """See :meth:`OwnLayerAttention.update`."""
        y = attend(self.theta(query).flatten(2), self.phi(query).flatten(2), self.g(query).flatten(2))
        return self.out(y.unflatten(2, query.shape[2:]))

    def macs(self, query: Feature) -> int:
        """See :meth:`Attention.macs`: four projections, the affinities and the weighted sums."""
        return query.pixels * self.inner_channels * (4 * query.channels + 2 * query.pixels)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the softmax of ``queries . keys`` times the values, without a scale.

    Args:
        queries: (B, D, N).
        keys: (B, D, M).
        values: (B, E, M); the fused kernels need E = D.

    Returns:
        (B, E, N).
    """
    q, k, v = (x.mT.contiguous().unsqueeze(1) for x in (queries, keys, values))  # B x 1 x pixels x D
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1).mT


def inner_width(channels: int, inner_channels: int | None) -> int:
    """Return the inner channels asked for, or half of all; raises AclaError for fewer than 1."""
    if inner_channels is None:
        return max(1, channels // 2)
    if inner_channels < 1:
        raise AclaError(f"inner_channels must be at least 1, not {inner_channels}")
    return inner_channels
