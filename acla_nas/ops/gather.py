"""cross_layer_gather: for every pixel, the weighted sum of values sampled in several feature maps.

Bilinear sampling is linear, so the K sampled values of a reference need never exist: each output pixel
is a weighted sum of 4K rows of the value map, which is what ``embedding_bag`` computes. The sums run
over one image, one reference and one strip of rows at a time, so that the index stays in cache and the
working memory does not grow with the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acla_nas.errors import AclaError

_STRIP_ENTRIES = 1 << 18  # index entries (4 corners x keys x queries) worked on at a time


def cross_layer_gather(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """Sum ``weights * values`` read at ``pixel + offset`` over all references and keys (Eq. 5, 6).

    ``out[b, :, p] = sum_r sum_k weights[b, r, k, p] * values[r][b, :, p + offsets[b, r, k, :, p]]``,
    with bilinear reading and 0 outside the image. A value map of another resolution than the query's is
    read at the same place in normalised coordinates.

    Args:
        values: R tensors (B, C, H_r, W_r): float32, float64, bfloat16 or float16.
        offsets: (B, R, K, 2, H, W): (dx, dy) in pixels of the query's grid. Coordinates are computed in
            float32, in float64 where offsets are float64.
        weights: (B, R, K, H, W).

    Returns:
        (B, C, H, W), of the dtype of ``values``. Gradients flow to all three arguments.

    Raises:
        AclaError: the shapes do not fit together.

    Example:
        >>> import torch
        >>> value = torch.arange(4.0).view(1, 1, 1, 4)
        >>> right = torch.zeros(1, 1, 1, 2, 1, 4)
        >>> right[:, :, :, 0] = 1.0  # one pixel to the right
        >>> cross_layer_gather([value], right, torch.ones(1, 1, 1, 1, 4)).flatten()
        tensor([1., 2., 3., 0.])
    """
    _check_shapes(values, offsets, weights)
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return _grid_sample_form(values, offsets, weights)
    result: Tensor = _Gather.apply(offsets, weights, *values)
    return result


def _check_shapes(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> None:
    if offsets.dim() != 6 or offsets.shape[3] != 2:
        raise AclaError(f"offsets must be (B, R, K, 2, H, W), not {tuple(offsets.shape)}")
    batch, references, keys, _, height, width = offsets.shape
    if weights.shape != (batch, references, keys, height, width):
        raise AclaError(
            f"weights must be (B, R, K, H, W) = {(batch, references, keys, height, width)} to fit the "
            f"offsets, not {tuple(weights.shape)}"
        )
    if len(values) != references:
        raise AclaError(f"offsets are for {references} references, but {len(values)} value maps were given")
    for value in values:
        if value.dim() != 4 or value.shape[:2] != (batch, values[0].shape[1]):
            raise AclaError(
                f"values must be R tensors (B, C, H_r, W_r) with B = {batch} and one C, "
                f"not {[tuple(v.shape) for v in values]}"
            )


class _Gather(torch.autograd.Function):
    """The fast form with a backward of its own, which saves nothing but the arguments."""

    @staticmethod
    def forward(ctx: Any, offsets: Tensor, weights: Tensor, *values: Tensor) -> Tensor:
        ctx.save_for_backward(offsets, weights, *values)
        batch, _, _, _, height, width = offsets.shape
        channels = values[0].shape[1]
        out = values[0].new_zeros(batch, height * width, channels)
        for b, r, rows, strip in _strips(offsets, values):
            table = _rows_of(values[r][b])
            index, corner = _corners(offsets[b, r, :, :, rows], values[r].shape[2:], rows, height)
            bag = corner * _query_major(weights[b, r, :, rows]).to(corner.dtype).unsqueeze(-1)
            out[b, strip] += _bag_sum(table, index, bag)
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        offsets, weights, *values = ctx.saved_tensors
        needs_offsets, needs_weights, *needs_values = ctx.needs_input_grad
        batch, _, _, _, height, width = offsets.shape
        channels = values[0].shape[1]
        grad = grads[0].permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        grad_offsets = torch.zeros_like(offsets) if needs_offsets else None
        grad_weights = torch.zeros_like(weights) if needs_weights else None
        grad_values = [
            v.new_zeros(batch, v.shape[2] * v.shape[3], channels) if needed else None
            for v, needed in zip(values, needs_values)
        ]
        for b, r, rows, strip in _strips(offsets, values):
            size = values[r].shape[2:]
            index, corner, slope_x, slope_y = _corners(
                offsets[b, r, :, :, rows], size, rows, height, slopes=True
            )
            weight = _query_major(weights[b, r, :, rows]).to(corner.dtype)
            into = grad_values[r]
            if into is not None:
                into[b] += _scatter_sum(grad[b, strip], index, corner * weight.unsqueeze(-1), into.shape[1])
            if grad_offsets is None and grad_weights is None:
                continue
            dots = _bag_dots(grad[b, strip], _rows_of(values[r][b]), index).to(corner.dtype)
            if grad_weights is not None:
                grad_weights[b, r, :, rows] = _key_major((dots * corner).sum(-1), width)
            if grad_offsets is not None:
                grad_offsets[b, r, :, 0, rows] = _key_major((dots * slope_x).sum(-1) * weight, width)
                grad_offsets[b, r, :, 1, rows] = _key_major((dots * slope_y).sum(-1) * weight, width)
        shaped = (
            g if g is None else g.view(batch, *v.shape[2:], channels).permute(0, 3, 1, 2)
            for g, v in zip(grad_values, values)
        )
        return grad_offsets, grad_weights, *shaped


def _strips(offsets: Tensor, values: Sequence[Tensor]) -> Iterator[tuple[int, int, slice, slice]]:
    """Yield (image, reference, its rows, its queries) so that one strip's index stays in cache."""
    batch, _, keys, _, height, width = offsets.shape
    rows = max(1, _STRIP_ENTRIES // (4 * keys * width))
    for b in range(batch):
        for r in range(len(values)):
            for top in range(0, height, rows):
                end = min(top + rows, height)
                yield b, r, slice(top, end), slice(top * width, end * width)


def _query_major(x: Tensor) -> Tensor:
    """(K, rows, W) -> (rows * W, K)."""
    return x.flatten(1).t()


def _key_major(x: Tensor, width: int) -> Tensor:
    """(rows * W, K) -> (K, rows, W)."""
    return x.t().unflatten(1, (-1, width))


def _rows_of(value: Tensor) -> Tensor:
    """(C, h, w) -> (h * w, C), without a copy where the map is channels-last in memory."""
    return value.permute(1, 2, 0).reshape(-1, value.shape[0]).contiguous()


def _corners(
    offsets: Tensor, size: Sequence[int], rows: slice, height: int, slopes: bool = False
) -> tuple[Tensor, ...]:
    """Return the four pixels that bilinear reading touches, and their weights.

    Args:
        offsets: (K, 2, rows, W), of one image and reference.
        size: (h, w) of the value map.
        rows: which rows of the query map these are.
        height: of the query map.
        slopes: also return the derivatives of the weights with respect to dx and dy.

    Returns:
        index (rows * W, K, 4) int32 into the value map's pixels; weights of the same shape, 0 for
        pixels outside the image; with slopes, d weights / d dx and d weights / d dy as well.
    """
    h, w = size
    keys, _, _, width = offsets.shape
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    delta = offsets.to(dtype).permute(1, 2, 3, 0)  # 2 x rows x W x K
    column = torch.arange(width, device=offsets.device, dtype=dtype).view(1, -1, 1)
    row = torch.arange(rows.start, rows.stop, device=offsets.device, dtype=dtype).view(-1, 1, 1)
    left, x_fraction = _split(column, delta[0], width, w)
    top, y_fraction = _split(row, delta[1], height, h)

    x_pair = torch.stack((left, left + 1), -1)  # rows x W x K x 2
    y_pair = torch.stack((top, top + 1), -1)
    x_inside = ((x_pair >= 0) & (x_pair < w)).to(dtype)
    y_inside = ((y_pair >= 0) & (y_pair < h)).to(dtype)
    x_weight = torch.stack((1 - x_fraction, x_fraction), -1) * x_inside
    y_weight = torch.stack((1 - y_fraction, y_fraction), -1) * y_inside
    index = y_pair.clamp(0, h - 1).int().mul_(w).unsqueeze(-1) + x_pair.clamp(0, w - 1).int().unsqueeze(-2)
    shape = (-1, keys, 4)
    found = [index.reshape(shape), (y_weight.unsqueeze(-1) * x_weight.unsqueeze(-2)).reshape(shape)]
    if slopes:
        sign = torch.tensor([-1.0, 1.0], device=offsets.device, dtype=dtype)
        x_slope = x_inside * (sign * (w / width))
        y_slope = y_inside * (sign * (h / height))
        found.append((y_weight.unsqueeze(-1) * x_slope.unsqueeze(-2)).reshape(shape))
        found.append((y_slope.unsqueeze(-1) * x_weight.unsqueeze(-2)).reshape(shape))
    return tuple(found)


def _split(start: Tensor, delta: Tensor, query_size: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the whole and the fractional part of the position that an offset points to."""
    if size == query_size:  # keeps the fraction exact however large the image is
        whole = delta.floor()
        return start + whole, delta - whole
    position = (start + 0.5 + delta) * (size / query_size) - 0.5
    whole = position.floor()
    return whole, position - whole


def _bag_sum(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Return for each query the weighted sum of its rows of the table: (Q, C)."""
    index, weight = index.flatten(1), weight.flatten(1).to(table.dtype)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)


def _bag_dots(grad: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return the products of each query's gradient with each of its rows: the shape of the index."""
    queries, entries = index.shape[0], index[0].numel()
    start = torch.arange(0, queries * entries, entries, dtype=torch.int32, device=index.device)
    owner = torch.arange(queries, dtype=torch.int32, device=index.device).repeat_interleave(entries)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad.contiguous(), table, index.flatten(), start, owner, 0
    )
    return dots.view(index.shape)


def _scatter_sum(grad: Tensor, index: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Return for each row of the table the weighted sum of the gradients of its queries: (rows, C).

    It is a bag sum over the transposed index, several times faster than scattered additions, and the
    same from run to run.
    """
    queries, entries = index.shape[0], index[0].numel()
    if index.device.type == "cpu":
        from scipy.sparse import csr_matrix

        start = torch.arange(0, queries * entries + 1, entries, dtype=torch.int32)
        data = weight.flatten().contiguous()
        by_row = csr_matrix(
            (data.numpy(), index.flatten().numpy(), start.numpy()), shape=(queries, rows)
        ).tocsc()
        owner = torch.from_numpy(by_row.indices)
        begin = torch.from_numpy(by_row.indptr[:-1])
        sorted_weight = torch.from_numpy(by_row.data)
    else:
        sorted_row, order = torch.sort(index.flatten(), stable=True)
        owner = (order // entries).int()
        begin = torch.searchsorted(sorted_row, torch.arange(rows, device=index.device, dtype=torch.int32))
        begin = begin.int()
        sorted_weight = weight.flatten()[order]
    return F.embedding_bag(
        owner, grad.contiguous(), begin, mode="sum", per_sample_weights=sorted_weight.to(grad.dtype)
    )


def _grid_sample_form(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """The same sum through ``grid_sample``, which every export format knows."""
    total = None
    for r, value in enumerate(values):
        sampled = sample_at(value, offsets[:, r])  # B x C x K x H x W
        term = (sampled * weights[:, r].unsqueeze(1).to(sampled.dtype)).sum(2)
        total = term if total is None else total + term
    assert total is not None
    return total


def sample_at(value: Tensor, offsets: Tensor) -> Tensor:
    """Read a map at ``pixel + offset`` for every key, bilinearly, 0 outside the image.

    Args:
        value: (B, C, h, w).
        offsets: (B, K, 2, H, W), (dx, dy) in pixels of the query's grid.

    Returns:
        (B, C, K, H, W).
    """
    batch, keys, _, height, width = offsets.shape
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    delta = offsets.to(dtype)
    column = torch.arange(width, device=offsets.device, dtype=dtype).view(1, 1, 1, -1)
    row = torch.arange(height, device=offsets.device, dtype=dtype).view(1, 1, -1, 1)
    x = (column + 0.5 + delta[:, :, 0]) * (2 / width) - 1
    y = (row + 0.5 + delta[:, :, 1]) * (2 / height) - 1
    grid = torch.stack((x, y), -1).flatten(1, 2)  # B x KH x W x 2
    sampled = F.grid_sample(value.to(dtype), grid, padding_mode="zeros", align_corners=False)
    return sampled.unflatten(2, (keys, height)).to(value.dtype)


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
