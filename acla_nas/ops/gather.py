"""cross_layer_gather: for every pixel, the weighted sum of values sampled in several feature maps.

Bilinear sampling is linear, so the K sampled values of a reference need never exist: each output pixel
is a weighted sum of 4K rows of the value map, which is what ``embedding_bag`` computes. The sums run
over one reference and one strip of rows, or a few small images, at a time, so that the index stays in
cache and the working memory does not grow with the image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse
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
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return _grid_sample_form(values, offsets, weights)
    _check_shapes(values, offsets, weights)
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
        out = values[0].new_zeros(batch, height, width, channels)
        for images, r, rows in _strips(offsets):
            corners = _Corners(offsets[images, r, :, :, rows], values[r].shape[2:], rows.start, height)
            weight = _query_major(corners.weight * _key_major(weights[images, r, :, rows], corners.dtype))
            strip = out[images, rows]
            strip += F.embedding_bag(
                corners.index,
                _rows_of(values[r][images]),
                mode="sum",
                per_sample_weights=weight.to(out.dtype),
            ).view(strip.shape)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        offsets, weights, *values = ctx.saved_tensors
        needs_offsets, needs_weights, *needs_values = ctx.needs_input_grad
        batch, _, _, _, height, _ = offsets.shape
        channels = values[0].shape[1]
        grad = grads[0].permute(0, 2, 3, 1).contiguous()  # B x H x W x C
        grad_offsets = torch.zeros_like(offsets) if needs_offsets else None
        grad_weights = torch.zeros_like(weights) if needs_weights else None
        grad_values = [
            v.new_zeros(batch, *v.shape[2:], channels) if needed else None
            for v, needed in zip(values, needs_values)
        ]
        for images, r, rows in _strips(offsets):
            corners = _Corners(offsets[images, r, :, :, rows], values[r].shape[2:], rows.start, height)
            strip = weights[images, r, :, rows]
            weight = _key_major(strip, corners.dtype)
            strip_grad = grad[images, rows].reshape(-1, channels)
            into = grad_values[r]
            if into is not None:
                into = into[images]
                into += _scatter_sum(strip_grad, corners, weight, into.numel() // channels).view(into.shape)
            if grad_offsets is None and grad_weights is None:
                continue
            dots = _dots(strip_grad, _rows_of(values[r][images]), corners)
            if grad_weights is not None:
                grad_weights[images, r, :, rows] = _image_major((dots * corners.weight).sum(0), strip)
            if grad_offsets is not None:
                slope_x, slope_y = corners.slopes()
                grad_offsets[images, r, :, 0, rows] = _image_major((dots * slope_x).sum(0) * weight, strip)
                grad_offsets[images, r, :, 1, rows] = _image_major((dots * slope_y).sum(0) * weight, strip)
        of_values = (g if g is None else g.permute(0, 3, 1, 2) for g in grad_values)
        return grad_offsets, grad_weights, *of_values


def _strips(offsets: Tensor) -> Iterator[tuple[slice, int, slice]]:
    """Yield (images, reference, rows) so that the index of each strip stays in cache."""
    batch, references, keys, _, height, width = offsets.shape
    rows = min(height, max(1, _STRIP_ENTRIES // (4 * keys * width)))
    images = max(1, _STRIP_ENTRIES // (4 * keys * width * height))
    for first in range(0, batch, images):
        for r in range(references):
            for top in range(0, height, rows):
                yield slice(first, min(first + images, batch)), r, slice(top, min(top + rows, height))


def _rows_of(values: Tensor) -> Tensor:
    """(b, C, h, w) -> (b * h * w, C), without a copy where the maps are channels-last in memory."""
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1]).contiguous()


def _key_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, K, rows, W) -> (K, Q)."""
    return x.to(dtype).transpose(0, 1).reshape(x.shape[1], -1)


def _image_major(x: Tensor, like: Tensor) -> Tensor:
    """(K, Q) -> (b, K, rows, W)."""
    images, keys, rows, width = like.shape
    return x.view(keys, images, rows, width).transpose(0, 1)


def _query_major(x: Tensor) -> Tensor:
    """(4, K, Q) -> (Q, 4K), the layout of the bags."""
    return x.flatten(0, 1).t().contiguous()


class _Corners:
    """The four pixels that bilinear reading touches for each key, and their weights.

    All arithmetic is on (K, Q) tensors, which are contiguous and so run at full vector width.

    Args:
        offsets: (b, K, 2, rows, W), of one reference; Q = b * rows * W.
        size: (h, w) of the value map.
        first_row: of these rows, in the query map.
        height: of the query map.

    Attributes:
        index: (Q, 4K) int32 into the b * h * w pixels of the value maps; some pixel where weight is 0.
        weight: (4, K, Q); 0 for pixels outside the image.
    """

    def __init__(self, offsets: Tensor, size: Sequence[int], first_row: int, height: int) -> None:
        h, w = size
        images, _, _, rows, width = offsets.shape
        self.dtype = torch.promote_types(offsets.dtype, torch.float32)
        device = offsets.device
        column = torch.arange(width, device=device, dtype=self.dtype).repeat(images * rows)
        row = torch.arange(first_row, first_row + rows, device=device, dtype=self.dtype)
        row = row.repeat_interleave(width).repeat(images)
        left, x_fraction = _split(column, _key_major(offsets[:, :, 0], self.dtype), width, w)
        top, y_fraction = _split(row, _key_major(offsets[:, :, 1], self.dtype), height, h)
        self._x_inside = [_is_inside(left, w), _is_inside(left + 1, w)]
        self._y_inside = [_is_inside(top, h), _is_inside(top + 1, h)]
        self._x_weight = [(1 - x_fraction) * self._x_inside[0], x_fraction * self._x_inside[1]]
        self._y_weight = [(1 - y_fraction) * self._y_inside[0], y_fraction * self._y_inside[1]]
        self._scale = (w / width, h / height)

        left, top = left.clamp_(-1, w).int(), top.clamp_(-1, h).int()
        columns = [left.clamp(0, w - 1), (left + 1).clamp_(0, w - 1)]
        lines = [top.clamp(0, h - 1).mul_(w), (top + 1).clamp_(0, h - 1).mul_(w)]
        if images > 1:  # each image has its own pixels
            own = torch.arange(0, images * h * w, h * w, device=device, dtype=torch.int32)
            lines = [line.add_(own.repeat_interleave(rows * width)) for line in lines]
        index = torch.stack([line + column for line in lines for column in columns])
        self.index = _query_major(index)
        self.weight = _outer(self._y_weight, self._x_weight)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the weights with respect to dx and dy, each (4, K, Q)."""
        x_scale, y_scale = self._scale
        x_slope = [self._x_inside[0] * -x_scale, self._x_inside[1] * x_scale]
        y_slope = [self._y_inside[0] * -y_scale, self._y_inside[1] * y_scale]
        return _outer(self._y_weight, x_slope), _outer(y_slope, self._x_weight)


def _split(start: Tensor, delta: Tensor, query_size: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the whole and the fractional part of the position that an offset points to."""
    if size == query_size:  # keeps the fraction exact however large the image is
        whole = delta.floor()
        return start + whole, delta - whole
    position = (start + 0.5 + delta) * (size / query_size) - 0.5
    whole = position.floor()
    return whole, position - whole


def _is_inside(position: Tensor, size: int) -> Tensor:
    return ((position >= 0) & (position < size)).to(position.dtype)


def _outer(y: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
    """Return the products of both y with both x: (4, K, Q)."""
    return torch.stack([a * b for a in y for b in x])


def _dots(grad: Tensor, table: Tensor, corners: _Corners) -> Tensor:
    """Return the products of each query's gradient with each of its rows of the table: (4, K, Q)."""
    index = corners.index
    queries, entries = index.shape
    if table.shape[0] < entries:  # sampled_addmm takes no more entries than the matrix has columns
        table = F.pad(table, (0, 0, 0, entries - table.shape[0]))
    start = torch.arange(0, index.numel() + 1, entries, dtype=torch.int32, device=index.device)
    compute = torch.promote_types(grad.dtype, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its sparse CSR tensors a beta feature
        pattern = torch.sparse_csr_tensor(
            start,
            index.flatten(),
            torch.zeros(index.numel(), dtype=compute, device=index.device),
            size=(queries, table.shape[0]),
            check_invariants=False,
        )
        product = torch.sparse.sampled_addmm(pattern, grad.to(compute), table.to(compute).t(), beta=0.0)
    return product.values().view(queries, entries).to(corners.dtype).t().contiguous().view_as(corners.weight)


def _scatter_sum(grad: Tensor, corners: _Corners, weight: Tensor, rows: int) -> Tensor:
    """Return for each row of the table the weighted sum of the gradients of its queries: (rows, C).

    It is a bag sum over the transposed index, several times faster than scattered additions, and the
    same from run to run.
    """
    index, bags = corners.index, _query_major(corners.weight * weight)
    queries, entries = index.shape
    if index.device.type == "cpu":
        start = np.arange(0, index.numel() + 1, entries, dtype=np.int32)
        by_query = scipy.sparse.csr_array(
            (bags.flatten().numpy(), index.flatten().numpy(), start), shape=(queries, rows)
        )
        by_row = by_query.tocsc()
        owner, begin = torch.from_numpy(by_row.indices), torch.from_numpy(by_row.indptr[:-1])
        bags = torch.from_numpy(by_row.data)
    else:
        row, order = torch.sort(index.flatten(), stable=True)
        owner = (order // entries).int()
        begin = torch.searchsorted(row, torch.arange(rows, device=index.device, dtype=row.dtype)).int()
        bags = bags.flatten()[order]
    return F.embedding_bag(
        owner, grad.contiguous(), begin, mode="sum", per_sample_weights=bags.to(grad.dtype)
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
    _, keys, _, height, width = offsets.shape
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
