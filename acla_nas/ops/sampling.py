"""Reading maps between pixels, key by key, with gradients: what is read has a number for each key.

:func:`acla_nas.ops.cross_layer_gather` sums over keys without that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_at(value: Tensor, offsets: Tensor) -> Tensor:
    """Read a map at ``pixel + offset`` for every key, bilinearly, 0 outside the image.

    Where PyTorch is told to use deterministic algorithms only, ``grid_sample``, whose gradient has none on a
    GPU, gives way to four slower reads.

    Args:
        value: (B, C, h, w).
        offsets: (B, K, 2, H, W), (dx, dy) in pixels of the query's grid.

    Returns:
        (B, C, K, H, W).
    """
    _, keys, _, height, width = offsets.shape
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    delta = offsets.to(dtype)
    column = torch.arange(width, device=offsets.device, dtype=dtype).view(1, 1, 1, -1)
    row = torch.arange(height, device=offsets.device, dtype=dtype).view(1, 1, -1, 1)
    x = (column + 0.5 + delta[:, :, 0]) * (2 / width) - 1
    y = (row + 0.5 + delta[:, :, 1]) * (2 / height) - 1
    grid = torch.stack((x, y), -1).flatten(1, 2)  # B x KH x W x 2
    if torch.are_deterministic_algorithms_enabled():
        sampled = _read_four(value.to(dtype), grid)
    else:
        sampled = F.grid_sample(value.to(dtype), grid, padding_mode="zeros", align_corners=False)
    return sampled.unflatten(2, (keys, height)).to(value.dtype)


def _read_four(value: Tensor, grid: Tensor) -> Tensor:
    """Return what ``grid_sample`` returns, bilinear and with zeros outside, by reads of four pixels."""
    height, width = value.shape[2:]
    size = torch.tensor([width, height], device=grid.device, dtype=grid.dtype)
    place = ((grid + 1) * size - 1) / 2
    corner = place.detach().floor()
    fraction = place - corner
    total: Tensor | None = None
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixel = corner + torch.tensor([right, below], device=grid.device, dtype=grid.dtype)
        inside = ((pixel >= 0) & (pixel < size)).all(-1)  # B x H' x W'
        column, row = (pixel[..., i].clamp(0, n - 1).long() for i, n in ((0, width), (1, height)))
        index = (row * width + column).flatten(1).unsqueeze(1).expand(-1, value.shape[1], -1)
        read = value.flatten(2).gather(2, index).unflatten(2, grid.shape[1:3])
        x, y = fraction.unbind(-1)
        weight = (x if right else 1 - x) * (y if below else 1 - y) * inside
        term = read * weight.unsqueeze(1)
        total = term if total is None else total + term
    assert total is not None
    return total


def sample_key_maps(maps: Tensor, offsets: Tensor) -> Tensor:
    """Read the k-th of K maps at the k-th key: output k of a convolution, at key k (Eq. 8).

    Args:
        maps: (B, K, h, w).
        offsets: (B, K, 2, H, W), (dx, dy) in pixels of the query's grid.

    Returns:
        (B, K, H, W).
    """
    batch, keys = maps.shape[:2]
    sampled = sample_at(maps.flatten(0, 1).unsqueeze(1), offsets.flatten(0, 1).unsqueeze(1))
    return sampled.view(batch, keys, *offsets.shape[-2:])
