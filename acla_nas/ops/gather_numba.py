"""The operator on a CPU: loops of our own find the rows, and PyTorch's ``embedding_bag`` sums them.

It works on strips of rows, or a few small images, of one reference at a time, so that what is worked on
stays near the cores and does not grow with the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acla_nas.ops.jit import share_threads
from acla_nas.ops.kernels import Part, differentiate, lay_out, list_rows, transpose
from acla_nas.ops.scratch import scratch

_STRIP_KEYS = 1 << 17  # keys worked on at a time, whatever the threads, so that sums are the same
_TABLE_BYTES = 1 << 24  # of a map laid out as a whole; queries of larger ones read about as much at a time
_MOST = 1 << 28  # pixels of all images and keys of a strip are fewer, so that their numbers fit into 32 bits


def is_supported(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> bool:
    """Whether the loops take these arguments: on a CPU, not empty."""
    tensors = [*values, offsets, weights]
    return all(t.device.type == "cpu" and t.numel() > 0 and t.numel() // t.shape[1] < _MOST for t in tensors)


def forward(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """Return what :func:`acla_nas.ops.cross_layer_gather` does."""
    batch, references, keys, _, height, width = offsets.shape
    compute = _dtype(values, offsets)
    offsets, weights = offsets.to(compute).contiguous(), weights.to(compute).contiguous()
    out = offsets.new_empty(batch, height, width, values[0].shape[1])
    parts = _parts(offsets, values)
    lists, table = Lists(_most_queries(parts, width), keys, compute), Table(compute)
    for images, strips in parts:
        for r in range(references):
            table.load(values[r][images], offsets[images, r], strips)
            for rows in strips:
                _fill(lists, _part(images, rows, table, offsets), offsets, weights, r)
                sums = lists.sum(table.rows).view(-1, rows.stop - rows.start, width, out.shape[-1])
                if r == 0:
                    out[images, rows] = sums
                else:
                    out[images, rows] += sums
    return out.to(values[0].dtype).permute(0, 3, 1, 2)


def backward(
    grad: Tensor, values: Sequence[Tensor], offsets: Tensor, weights: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of offsets, weights and values, in this order; None where not needed."""
    needs_offsets, needs_weights, *needs_values = needed
    compute = _dtype(values, offsets)
    dtypes = (offsets.dtype, weights.dtype)
    offsets, weights = offsets.to(compute).contiguous(), weights.to(compute).contiguous()
    grad = grad.permute(0, 2, 3, 1)
    of_offsets, of_weights = torch.empty_like(offsets), torch.empty_like(weights)
    of_values: list[Tensor | None] = []
    parts = _parts(offsets, values)
    lists, table = Lists(_most_queries(parts, offsets.shape[-1]), offsets.shape[2], compute), Table(compute)
    for r, (value, needs_value) in enumerate(zip(values, needs_values)):
        total = Total(value, compute, len(parts) * len(parts[0][1])) if needs_value else None
        for images, strips in parts:
            table.load(value[images], offsets[images, r], strips)
            for rows in strips:
                part = _part(images, rows, table, offsets)
                of_sums = grad[images, rows].to(compute).contiguous()
                if total is not None:
                    _fill(lists, part, offsets, weights, r)
                    total.add(lists, of_sums.flatten(0, 2), images, table)
                if needs_offsets or needs_weights:
                    differentiate(
                        part, of_sums.numpy(), table.rows.numpy(),
                        offsets.numpy(), weights.numpy(), r, of_offsets.numpy(), of_weights.numpy(),
                    )  # fmt: skip
        of_values.append(None if total is None else total.result.permute(0, 3, 1, 2).to(value.dtype))
    return [
        of_offsets.to(dtypes[0]) if needs_offsets else None,
        of_weights.to(dtypes[1]) if needs_weights else None,
        *of_values,
    ]


def _dtype(values: Sequence[Tensor], offsets: Tensor) -> torch.dtype:
    """Return float32, or float64 where anything is."""
    return torch.promote_types(torch.promote_types(values[0].dtype, offsets.dtype), torch.float32)


def _parts(offsets: Tensor, values: Sequence[Tensor]) -> list[tuple[slice, list[slice]]]:
    """Return images, and strips of rows, one reference of which is read after the other.

    Those of a large image are some of its rows, whose sums and whose table fit into a cache together.
    """
    batch, _, keys, _, height, width = offsets.shape
    images = max(1, _STRIP_KEYS // (keys * width * height))
    rows = max(1, _STRIP_KEYS // (keys * width))
    strips = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
    together = len(strips)
    largest = max(value[0].numel() * _dtype(values, offsets).itemsize for value in values)
    if images == 1 and largest > _TABLE_BYTES:
        most = max(1, 5 * len(strips) * _TABLE_BYTES // (6 * largest))  # a sixth is for lines around them
        parts = math.ceil(len(strips) / most)
        together = math.ceil(len(strips) / parts)
    return [
        (slice(i, min(i + images, batch)), strips[first : first + together])
        for i in range(0, batch, images)
        for first in range(0, len(strips), together)
    ]


class Table:
    """Value maps (b, C, h, w), a pixel a row: all lines of them, or those of one large map that are read.

    Args:
        dtype: of the rows.

    Attributes:
        rows: (b lines w, C).
        size: (h, w).
        first, lines: the first of the lines that are there, and how many.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def load(self, maps: Tensor, offsets: Tensor, strips: Sequence[slice]) -> None:
        """Take other maps, in place of those before.

        Args:
            maps: that are read.
            offsets: (b, K, 2, H, W), of the queries that read them.
            strips: rows of queries, no others read.
        """
        pixels = maps.permute(0, 2, 3, 1)
        images, height, width, channels = pixels.shape
        self.size, self.first, self.lines = (height, width), 0, height
        if maps.dtype == self._dtype and pixels.is_contiguous():
            self.rows = pixels.reshape(-1, channels)
            return
        if images == 1 and maps.numel() * self._dtype.itemsize > _TABLE_BYTES:
            self._choose(offsets, slice(strips[0].start, strips[-1].stop))
        shape = (images, self.lines, width, channels)
        least = _TABLE_BYTES // self._dtype.itemsize  # lest it grows from part to part
        into = scratch("table", self._dtype, max(math.prod(shape), least))[: math.prod(shape)].view(shape)
        self.rows = into.view(-1, channels)
        if pixels.dtype == self._dtype and pixels[0, :, :, 0].is_contiguous():
            share_threads()
            lay_out(pixels.flatten(1, 2).mT.numpy(), self.first * width, into.flatten(1, 2).numpy())
        else:
            into.copy_(pixels[:, self.first : self.first + self.lines])

    def _choose(self, offsets: Tensor, rows: slice) -> None:
        """Choose the lines that are read by the queries in these rows."""
        height, scale = self.size[0], self.size[0] / offsets.shape[-2]
        least, most = (float(y) for y in offsets[:, :, 1, rows].aminmax())
        if not math.isfinite(least + most):
            return
        first = math.floor((rows.start + 0.5 + least) * scale - 0.5)
        last = math.floor((rows.stop - 0.5 + most) * scale - 0.5) + 1
        first, last = min(max(first, 0), height - 1), min(max(last, 0), height - 1)
        self.first, self.lines = first, last + 1 - first


class Lists:
    """Which rows of a table the queries of a part sum, in scratch memory for the largest part.

    Args:
        queries: that a part has at most.
        keys: of each.
        dtype: of weights.
    """

    def __init__(self, queries: int, keys: int, dtype: torch.dtype) -> None:
        self._begin = torch.empty(queries + 1, dtype=torch.int32)
        self._index = scratch("index", torch.int32, 2, 4 * queries * keys)
        self._weight = scratch("weight", dtype, 2, 4 * queries * keys)

    def to_fill(self, queries: int) -> list[Any]:
        """Return what a loop is to list the rows of so many queries in: begin, index and weight."""
        self._queries = queries
        return [self._begin[: queries + 1].numpy(), self._index[0].numpy(), self._weight[0].numpy()]

    @property
    def _entries(self) -> int:
        return int(self._begin[self._queries])

    def sum(self, rows: Tensor) -> Tensor:
        """Return for each query the weighted sum of its rows of a table: (Q, C)."""
        entries = self._entries
        return _bag_sum(
            self._index[0, :entries], rows, self._begin[: self._queries], self._weight[0, :entries]
        )

    def rows_read(self) -> slice:
        """Return from where to where rows of the table are listed."""
        if self._entries == 0:
            return slice(0, 0)
        first, last = self._index[0, : self._entries].aminmax()
        return slice(int(first), int(last) + 1)

    def sum_transposed(self, grad: Tensor, rows: slice) -> Tensor:
        """Return for rows of the table the weighted sums of the gradients of the queries that read them.

        Args:
            grad: (Q, C).
            rows: of the table, no others are listed.
        """
        start = self._begin.new_empty(rows.stop - rows.start + 1)
        transpose(
            self._begin[: self._queries + 1].numpy(), self._index[0].numpy(), self._weight[0].numpy(),
            rows.start, share_threads(), start.numpy(), self._index[1].numpy(), self._weight[1].numpy(),
        )  # fmt: skip
        entries = self._entries
        return _bag_sum(self._index[1, :entries], grad, start[:-1], self._weight[1, :entries])


class Total:
    """The gradient of a value map, (B, h, w, C), added up from parts of it.

    Args:
        value: the map, (B, C, h, w).
        dtype: of the gradient.
        parts: how many there are.
    """

    def __init__(self, value: Tensor, dtype: torch.dtype, parts: int) -> None:
        batch, channels, *size = value.shape
        self._shape, self._dtype, self._is_one = (batch, *size, channels), dtype, parts == 1
        self.result = torch.empty(0)

    def add(self, lists: Lists, grad: Tensor, images: slice, table: Table) -> None:
        """Add what the queries of a part give to the rows of a table that they read.

        Args:
            lists: of the part.
            grad: of what the queries sum, (Q, C).
            images, table: which they read.
        """
        if self._is_one:
            self.result = lists.sum_transposed(grad, slice(0, len(table.rows))).view(self._shape)
            return
        if self.result.numel() == 0:
            self.result = torch.zeros(self._shape, dtype=self._dtype)
        rows = lists.rows_read()
        beyond = table.first * table.size[1]
        if rows.stop > 0:
            into = self.result[images].flatten(0, 2)[beyond + rows.start : beyond + rows.stop]
            into += lists.sum_transposed(grad, rows)


def _bag_sum(row: Tensor, table: Tensor, begin: Tensor, weight: Tensor) -> Tensor:
    return F.embedding_bag(row, table, begin, mode="sum", per_sample_weights=weight)


def _most_queries(parts: Sequence[tuple[slice, list[slice]]], width: int) -> int:
    images, (rows, *_) = parts[0]
    return (images.stop - images.start) * (rows.stop - rows.start) * width


def _fill(lists: Lists, part: Part, offsets: Tensor, weights: Tensor, r: int) -> None:
    begin_index_weight = lists.to_fill(part.images * part.rows * offsets.shape[-1])
    list_rows(part, offsets.numpy(), weights.numpy(), r, *begin_index_weight)


def _part(images: slice, rows: slice, table: Table, offsets: Tensor) -> Part:
    """Return what the loops work on; they will use PyTorch's threads."""
    share_threads()
    return Part(
        images.start, images.stop - images.start, rows.start, rows.stop - rows.start, 0, offsets.shape[-2],
        *table.size, table.first, table.lines,
    )  # fmt: skip
