"""cross_layer_gather written as the equation has it: slow, exact in float64, what tests compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cross_layer_gather_reference(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """Sum the sampled values of every reference and key, each as a tensor of its own (Eq. 5).

    Arguments and result are those of :func:`acla_nas.ops.cross_layer_gather`.
    """
    height, width = offsets.shape[-2:]
    rows = torch.arange(height, dtype=offsets.dtype, device=offsets.device).view(1, height, 1)
    columns = torch.arange(width, dtype=offsets.dtype, device=offsets.device).view(1, 1, width)
    total = torch.zeros((), dtype=weights.dtype, device=weights.device)
    for r, value in enumerate(values):
        for k in range(offsets.shape[2]):
            dx, dy = offsets[:, r, k].unbind(1)  # B x H x W
            x = (columns + 0.5 + dx) * (value.shape[3] / width) - 0.5
            y = (rows + 0.5 + dy) * (value.shape[2] / height) - 0.5
            total = total + weights[:, r, k].unsqueeze(1) * _bilinear(value, x, y)
    return total


def _bilinear(value: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read value (B, C, h, w) at pixel positions x, y (B, H, W); 0 outside the image."""
    left, top = x.detach().floor(), y.detach().floor()
    result = torch.zeros((), dtype=value.dtype, device=value.device)
    for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < value.shape[2]) & (column >= 0) & (column < value.shape[3])
            batch = torch.arange(value.shape[0], device=value.device).view(-1, 1, 1)
            safe_row = row.clamp(0, value.shape[2] - 1).long()
            safe_column = column.clamp(0, value.shape[3] - 1).long()
            pixel = value[batch, :, safe_row, safe_column].permute(0, 3, 1, 2)  # B x C x H x W
            result = result + pixel * (weight_y * weight_x * inside).unsqueeze(1)
    return result
