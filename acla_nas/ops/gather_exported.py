"""The operator in programs and files that leave acla_nas: PyTorch's own operations, for any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acla_nas.ops.sampling import sample_at


def exported_gather(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """Return what ``cross_layer_gather`` does, in operations that can be traced.

    On a CPU it sums rows of a table by ``embedding_bag``; elsewhere what ``grid_sample`` reads key by key,
    of which ONNX has an operator. How fast both are on a CPU `acla-nas bench ops` measures.
    """
    is_summed = values[0].device.type == "cpu" and not torch.onnx.is_in_onnx_export()
    total = None
    for r, value in enumerate(values):
        term = (_sum_rows if is_summed else _sum_sampled)(value, offsets[:, r], weights[:, r])
        total = term if total is None else total + term
    assert total is not None
    return total


def _sum_sampled(value: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of what is read at the keys in one map (B, C, h, w), one after the other."""
    sampled = sample_at(value, offsets)  # B x C x K x H x W
    return (sampled * weights.unsqueeze(1).to(sampled.dtype)).sum(2)


def _sum_rows(value: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return the same as a sum of rows, the values of a pixel: of the four pixels around each key.

    Two pixels of zeros on every side give keys that lie outside their four.
    """
    batch, channels, h, w = value.shape
    height, width = offsets.shape[-2:]
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    dx, dy = offsets.to(dtype).permute(2, 0, 3, 4, 1).contiguous().unbind(0)  # B x H x W x K
    column, x = _split(dx, torch.arange(width, device=dx.device).view(-1, 1), w / width)
    row, y = _split(dy, torch.arange(height, device=dx.device).view(-1, 1, 1), h / height)
    column, row = column.clamp(-2, w) + 2, row.clamp(-2, h) + 2
    table = F.pad(value.to(dtype).permute(0, 2, 3, 1), (0, 0, 2, 2, 2, 2)).flatten(0, 2).contiguous()

    image = torch.arange(batch, device=dx.device).view(-1, 1, 1, 1)
    first = (image * (h + 4) + row) * (w + 4) + column
    next_one = torch.arange(2, device=dx.device)
    four = (next_one.view(2, 1) * (w + 4) + next_one).view(4, 1)
    index = first.unsqueeze(-2) + four  # B x H x W x 4 x K
    weight = weights.to(dtype).permute(0, 2, 3, 1)
    lower = weight * y
    upper = weight - lower
    upper_right, lower_right = upper * x, lower * x
    share = torch.stack((upper - upper_right, upper_right, lower - lower_right, lower_right), -2)
    rows, shares = index.flatten(3).flatten(0, 2), share.flatten(3).flatten(0, 2)  # queries x 4 K
    summed = F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)
    return summed.view(batch, height, width, channels).permute(0, 3, 1, 2).to(value.dtype)


def _split(offset: Tensor, start: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the pixel before the place that an offset points to, and how far that is beyond it.

    The place of the query itself is split beforehand, so that the rest stays exact in a large image.
    """
    at = (start.double() + 0.5) * scale - 0.5
    before = at.floor()
    place = offset * scale + (at - before).to(offset.dtype)
    whole = place.floor()
    return (whole + before.to(offset.dtype)).long(), place - whole
