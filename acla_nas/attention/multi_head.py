"""Multi-head attention (MHA): Bello et al., "Attention Augmented Convolutional Networks", ICCV 2019."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acla_nas.attention.attention import Feature, OwnLayerAttention, projection
from acla_nas.errors import AclaError


class MultiHeadAttention(OwnLayerAttention):
    """Self-attention within its own layer, in several heads, with learned relative positions.

    In each head, d = C / num_heads channels wide, for pixels i and n that lie (dx, dy) apart::

        a_in   = q_i . (k_n + r_dx + r_dy) / sqrt(d)
        y_i    = sum_n exp(a_in) v_n / sum_n exp(a_in)
        update = W y                                                 of all heads' y, concatenated

    q, k, v and W are 1x1 convolutions without bias. W starts at zero, so that insertion starts as the
    identity. Distances beyond ``max_distance`` count as that one, so that images of any size can be restored.

    Time and memory grow with the square of the number of pixels (the relative logits exist, once per
    head). Meant for patches: a big image is restored in windows.

    Parameters: 4 C^2 + 2 (2 max_distance + 1) C, the vectors r being each head's own. With the default,
    where the vectors reach across 96 pixels, the size of the patches that EDSR x2 puts out, four modules in
    EDSR (32 blocks, 256 channels) make 42.17 M, as in the paper's Table 11.

    Args:
        channels: C of the query feature.
        num_keys: 1, for every pixel is a key.
        reference_channels: not used: it refers to no other layer.
        num_heads: heads, which share out the channels.
        max_distance: largest distance, in pixels along one axis, with a vector of its own.

    Raises:
        AclaError: num_heads does not divide the channels, max_distance below 1, or num_keys other than 1.

    Example:
        >>> x = torch.randn(1, 8, 6, 6)
        >>> MultiHeadAttention(8, num_heads=2)(x, {"1": x}).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        num_keys: int = 1,
        *,
        reference_channels: Mapping[str, int] | None = None,
        num_heads: int = 8,
        max_distance: int = 95,
    ) -> None:
        super().__init__(num_keys)
        if num_heads < 1 or channels % num_heads:
            raise AclaError(f"num_heads must divide the {channels} channels of the feature, not {num_heads}")
        if max_distance < 1:
            raise AclaError(f"max_distance must be at least 1, not {max_distance}")
        self.num_heads = num_heads
        self.query, self.key, self.value = (projection(channels, channels) for _ in range(3))
        self.out = projection(channels, channels, zero=True)
        shape = (num_heads, channels // num_heads, 2 * max_distance + 1)
        self.relative_rows = nn.Parameter(torch.randn(shape) * shape[1] ** -0.5)
        self.relative_columns = nn.Parameter(torch.randn(shape) * shape[1] ** -0.5)

    def update(self, query: Tensor) -> Tensor:
        """See :meth:`OwnLayerAttention.update`."""
        queries, keys, values = (
            layer(query).unflatten(1, (self.num_heads, -1)) for layer in (self.query, self.key, self.value)
        )  # B x heads x d x H x W
        height, width = query.shape[2:]
        rows = torch.einsum("bhdyx,hdyn->bhyxn", queries, _between(self.relative_rows, height))
        columns = torch.einsum("bhdyx,hdxm->bhyxm", queries, _between(self.relative_columns, width))
        bias = rows.unsqueeze(5) + columns.unsqueeze(4)  # B x heads x H x W x H x W
        q, k, v = (x.flatten(3).mT.contiguous() for x in (queries, keys, values))  # B x heads x N x d
        y = F.scaled_dot_product_attention(q, k, v, bias.flatten(4).flatten(2, 3) * q.shape[3] ** -0.5)
        return self.out(y.mT.reshape(query.shape))

    def macs(self, query: Feature) -> int:
        """See :meth:`Attention.macs`: projections, relative logits, affinities and weighted sums."""
        per_pixel = 4 * query.channels + query.height + query.width + 2 * query.pixels
        return query.pixels * query.channels * per_pixel


def _between(vectors: Tensor, size: int) -> Tensor:
    """Return the vector for every pair of places on an axis: (heads, d, size, size).

    Args:
        vectors: (heads, d, 2 D + 1), for the distances -D .. D; larger ones count as these.
        size: of the axis, in pixels.
    """
    largest = vectors.shape[2] // 2
    places = torch.arange(size, device=vectors.device)
    apart = (places - places.unsqueeze(1)).clamp(-largest, largest)
    return vectors[:, :, apart + largest]
