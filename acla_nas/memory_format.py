"""to_channels_last: a network laid out as the convolutions of a CPU are fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from acla_nas.evaluation import evaluating


def to_channels_last(network: nn.Module, input_shape: Sequence[int]) -> None:
    """Lay out the weights of a network with the channels of a pixel side by side.

    Features then lie in memory so, too: how much faster that is `acla-nas bench infer` measures. What a
    network computes stays the same, up to rounding. Where it does not run so, as code may call ``view`` on
    features, or PyTorch has no oneDNN, the weights are left as they are.

    Args:
        network: on the CPU; the mode it is in stays.
        input_shape: (C, H, W) of the image that it is tried on.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3))
        >>> to_channels_last(network, (3, 8, 8))
        >>> network(torch.rand(1, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
        True
    """
    if not torch.backends.mkldnn.is_available():
        return
    to: Any = network.to
    try:
        to(memory_format=torch.channels_last)
        with evaluating(network), torch.no_grad():
            network(torch.zeros(1, *input_shape))
    except RuntimeError:
        to(memory_format=torch.contiguous_format)
