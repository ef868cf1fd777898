"""Squeeze-and-excitation (SE): Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from acla_nas.attention.attention import Feature, OwnLayerAttention, projection
from acla_nas.errors import AclaError


class SqueezeExcitation(OwnLayerAttention):
    """Each channel of the feature multiplied by a factor that depends on all channels' means.

    With x the feature, and both layers 1x1 and without bias (as Hu et al. recommend)::

        s      = 2 sigmoid(W2 relu(W1 mean(x)))       W1: C -> C / reduction, W2 back to C
        update = (s - 1) x                            so that x + update = s x

    W2 starts at zero, where s is 1: insertion starts as the identity. For that s reaches from 0 to 2; the
    published sigmoid, without the 2, would start by halving the feature that a trained backbone relies on.

    Parameters: 2 C C / reduction. Four modules in EDSR (32 blocks, 256 channels) make 40.76 M, where the
    paper's Table 11 has 41.79 M, four times C C a module more: no published form of the block has that.

    Args:
        channels: C of the query feature.
        num_keys: 1, for there are none.
        reference_channels: not used: it refers to no other layer.
        reduction: C over the channels of the hidden layer, which has one at least.

    Raises:
        AclaError: reduction below 1, or num_keys other than 1.

    Example:
        >>> x = torch.randn(1, 32, 6, 6)
        >>> SqueezeExcitation(32)(x, {"1": x}).shape
        torch.Size([1, 32, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        num_keys: int = 1,
        *,
        reference_channels: Mapping[str, int] | None = None,
        reduction: int = 16,
    ) -> None:
        super().__init__(num_keys)
        if reduction < 1:
            raise AclaError(f"reduction must be at least 1, not {reduction}")
        self.hidden_channels = max(1, channels // reduction)
        self.squeeze = projection(channels, self.hidden_channels)
        self.excite = projection(self.hidden_channels, channels, zero=True)

    def update(self, query: Tensor) -> Tensor:
        """See :meth:`OwnLayerAttention.update`."""
        mean = query.mean((2, 3), keepdim=True)
        # 2 sigmoid(u) - 1 is tanh(u / 2)
        return query * torch.tanh(self.excite(self.squeeze(mean).relu()) / 2)

    def macs(self, query: Feature) -> int:
        """See :meth:`Attention.macs`: the two layers; pooling and scaling accumulate no products."""
        return 2 * query.channels * self.hidden_channels
