"""Parameters and multiply-accumulates of a network, exact, without any arithmetic on its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from acla_nas import cost
from acla_nas.network import CrossLayerNetwork, copy_backbone

INPUT_SHAPE = (3, 48, 48)
"""(C, H, W) of the input for which the paper states its computation."""


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(p.numel() for p in network.parameters())


def backbone_macs(backbone: nn.Module, input_shape: Sequence[int] = INPUT_SHAPE) -> int:
    """Return the multiply-accumulates of a backbone's convolutions and matrix products, for one image.

    As usual, what is added elementwise (biases, skips) counts nothing. Nothing is computed: a copy runs on
    PyTorch's meta device.

    Example:
        >>> backbone_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10)) == 3 * 8 * 9 * 10 * 10
        True
    """
    image = torch.empty(1, *input_shape, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy_backbone(backbone).to("meta").eval()(image)
    return int(counter.get_total_flops()) // 2


def inserted_macs(network: CrossLayerNetwork, input_shape: Sequence[int] = INPUT_SHAPE) -> int:
    """Return the multiply-accumulates that the attention modules of a network execute, for one image."""
    if not network.positions:
        return 0
    return int(cost.get("macs").table(network, tuple(input_shape)).of([True] * len(network.positions)))


def count_macs(network: CrossLayerNetwork, input_shape: Sequence[int] = INPUT_SHAPE) -> int:
    """Return the multiply-accumulates of a network for one image: its backbone's and its modules'."""
    return backbone_macs(network.backbone, input_shape) + inserted_macs(network, input_shape)
