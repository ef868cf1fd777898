"""Value maps laid out for reading between pixels, and the keys that are read there.

A key at a place between pixels is a weighted sum of the four around it. Sums over keys are thus weighted sums
of rows of a table that has the pixels as rows, which is what ``embedding_bag`` computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

_TABLE_BYTES = 1 << 23  # of value maps laid out for reading, unless a strip's keys reach farther
_BLOCK = 64  # channels transposed at a time: more evict each other from the cache where maps are 48x48
_PICKING = 256  # time of picking a key out, in values of C read (measured)


class Table:
    """Value maps (b, C, h, w), a pixel a row, within a frame of zeros for what lies outside.

    Two pixels of frame on every side give any four neighbours a place, and make values and slopes 0
    outside without a test. Those to the right of a line are those to the left of the next.

    Args:
        maps: of one reference.
        dtype: of the rows.
        whole: whether all lines are there from the start, however many they are.

    Attributes:
        rows: (.., C).
        first, last: the lines that are there, -2 the first of the frame.
        stride: from one line to the next.
        plane: from one map to the next.
    """

    def __init__(self, maps: Tensor, dtype: torch.dtype, *, whole: bool = False) -> None:
        self.dtype = dtype
        self.images, self.channels, self.height, self.width = maps.shape
        self.stride = self.width + 2
        self._maps = maps
        line = self.images * self.stride * self.channels * dtype.itemsize
        lines = self.height + 4
        self._allocate(lines if whole or maps.is_meta else min(lines, _TABLE_BYTES // line))

    def _allocate(self, lines: int) -> None:
        self.first = self.last = -2
        self.plane = lines * self.stride
        count = self.images * self.plane
        self.rows = self._maps.new_empty(count + 2, self.channels, dtype=self.dtype)
        self.rows[count:] = 0
        self._lines = self.rows[:count].view(self.images, lines, self.stride, self.channels)
        self._lines[:, :, :2] = 0
        self.is_whole = lines == self.height + 4
        if self.is_whole:
            self._lay_out(-2, self.height + 2)

    def hold(self, first: int, last: int) -> None:
        """Make sure that these lines are there: with those that follow, as far as they fit, or all."""
        if self.first <= first and last <= self.last:
            return
        fitting = self._lines.shape[1]
        if last - first > fitting:
            self._allocate(self.height + 4)
            return
        if self.first < first < self.last:  # move those that are needed again, never onto each other
            by = first - self.first
            for line in range(0, self.last - first, by):
                moved = self._lines[:, line + by : min(line + 2 * by, self.last - self.first)]
                self._lines[:, line : line + moved.shape[1]] = moved
        else:
            self.last = first
        self.first = first
        self._lay_out(self.last, min(first + fitting, self.height + 2))

    def _lay_out(self, first: int, last: int) -> None:
        """Fill in these lines, which follow those that are there."""
        self.last = last
        lines = self._lines[:, first - self.first : last - self.first]
        top, bottom = max(first, 0) - first, min(last, self.height) - first
        lines[:, :top] = 0
        lines[:, max(bottom, 0) :] = 0
        into = lines[:, top:bottom, 2:]
        pixels = self._maps[:, :, first + top : first + bottom].permute(0, 2, 3, 1)
        for part, source in zip(into.split(_BLOCK, -1), pixels.split(_BLOCK, -1)):
            part.copy_(source)

    def sum(self, bags: Bags) -> Tensor:
        """Return for each query the weighted sum of its rows: (Q, C)."""
        return _bag_sum(bags.row, self.rows, bags.start[:-1], bags.weight)

    def dots(self, grad: Tensor, index: Tensor) -> Tensor:
        """Return the products of each query's gradient (Q, C) with each of its rows, as index."""
        rows, entries = self.rows, index.numel() // grad.shape[0]
        if rows.shape[0] < entries:  # sampled_addmm takes no more entries than the matrix has columns
            rows = F.pad(rows, (0, 0, 0, entries - rows.shape[0]))
        start = torch.arange(0, index.numel() + 1, entries, dtype=torch.int32, device=index.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch calls its sparse CSR tensors a beta feature
            pattern = torch.sparse_csr_tensor(
                start,
                index.view(-1),
                torch.zeros(index.numel(), dtype=grad.dtype, device=index.device),
                size=(grad.shape[0], rows.shape[0]),
                check_invariants=False,
            )
            product = torch.sparse.sampled_addmm(pattern, grad, rows.t(), beta=0.0)
        return product.values().view(index.shape)

    def add_transposed(self, into: Tensor, grad: Tensor, bags: Bags, lines: tuple[int, int]) -> None:
        """Add for each pixel the weighted sum of the gradients of the queries that read it.

        It is a bag sum over the transposed index, several times faster than scattered additions, and the
        same from run to run.

        Args:
            into: (b, h, w, C).
            grad: (Q, C).
            bags: of the queries.
            lines: the first that they read, and the one after the last.
        """
        first, last = lines
        owner, weight, begin = _transposed(bags, self.rows.shape[0])
        images, read = self.images, (last - first) * self.stride
        if read == self.plane:  # all maps without a gap
            images, read = 1, images * read
        skipped = (first - self.first) * self.stride
        begin = begin.as_strided((images, read + 2), (self.plane, 1), skipped)  # 2: to the right of the last
        sums = _bag_sum(owner, grad, begin.flatten(), weight).view(images, read + 2, -1)[:, :read]
        found = sums.view(self.images, last - first, self.stride, -1)
        top, bottom = max(first, 0), min(last, self.height)
        into[:, top:bottom] += found[:, top - first : bottom - first, 2:]


class Bags(NamedTuple):
    """Rows of a table to be summed for each query: entries ``start[q]`` to ``start[q + 1]`` are its own."""

    row: Tensor
    weight: Tensor
    start: Tensor


class Keys:
    """Where a strip's keys lie in tables of one size, and between which pixels.

    All is (R, b, rows, W, K) in memory, R tables of b maps, and each step one pass over it.

    Args:
        offsets: (2, R, b, rows, W, K), (dx, dy) in pixels of the query; used up.
        first_row: of these rows, in the query map.
        height: of the query map.
        tables: that the keys read; made to hold what they need.
    """

    def __init__(self, offsets: Tensor, first_row: int, height: int, tables: Sequence[Table]) -> None:
        self._tables, table = tables, tables[0]
        _, _, images, rows, width, _ = offsets.shape
        where: dict[str, Any] = {"device": offsets.device, "dtype": offsets.dtype}
        column = torch.arange(width, **where).view(-1, 1)
        row = torch.arange(first_row, first_row + rows, **where).view(-1, 1, 1)
        self._scale = (table.width / width, table.height / height)
        x, self._x = _split(offsets[0], column, self._scale[0])
        y, self._y = _split(offsets[1], row, self._scale[1])
        x.clamp_(-2, table.width)
        y.clamp_(-2, table.height)
        if not table.is_whole:
            top, bottom = y.aminmax()
            self.lines = (int(top), int(bottom) + 2)
            for table in tables:
                table.hold(*self.lines)
        else:
            self.lines = (table.first, table.last)
        x.add_(y, alpha=table.stride)
        if images > 1:
            image = torch.arange(images, device=x.device, dtype=torch.int32).mul_(table.plane)
            x.add_(image.view(-1, 1, 1, 1))
        self._corner = x
        start = 2 - table.first * table.stride
        pixels = [[start], [start + 1], [start + table.stride], [start + table.stride + 1]]
        self._pixels = torch.tensor(pixels, device=x.device, dtype=torch.int32)

    def index(self, step: int = 0) -> Tensor:
        """Return the rows of the four pixels around each key: (R, b, rows, W, 4, K) int32.

        Args:
            step: from what one key reads to what the next one does, where each has maps of its own.
        """
        if not step:
            return self._corner.unsqueeze(-2) + self._pixels
        number = torch.arange(self._corner.shape[-1], device=self._corner.device, dtype=torch.int32)
        return self._corner.unsqueeze(-2) + (self._pixels + step * number)

    def between(self, four: Tensor) -> Tensor:
        """Return what is read at the keys, (.., K), of what is at the four pixels around each, (.., 4, K)."""
        upper_left, upper_right, lower_left, lower_right = four.unbind(-2)
        upper = torch.lerp(upper_left, upper_right, self._x)
        return upper.lerp_(torch.lerp(lower_left, lower_right, self._x), self._y)

    def spread(self, weight: Tensor) -> Tensor:
        """Return the weights of the four pixels around each key, (.., 4, K), from the key's, (.., K)."""
        return _spread(weight, self._x, self._y)

    def bags(self, weight: Tensor) -> Iterator[Bags]:
        """Yield for each table these rows with the weights of the keys times those of the four pixels.

        Keys of weight 0 are left out where that is faster.
        """
        step, count = 4 * weight.shape[-1], 4 * weight[0].numel()
        start = torch.arange(0, count + 1, step, dtype=torch.int32, device=weight.device)
        if not self._skipping_pays(weight):
            for row, four in zip(self.index(), self.spread(weight)):
                yield Bags(row.view(-1), four.view(-1), start)
            return
        for corner, *parts in zip(self._corner, weight, self._x, self._y):
            kept = parts[0] != 0
            torch.cumsum(kept.sum(-1).view(-1), 0, out=start[1:]).mul_(4)
            row = corner[kept].unsqueeze(1) + self._pixels.view(-1)
            four = _spread(*(part[kept].unsqueeze(1) for part in parts))
            yield Bags(row.view(-1), four.view(-1), start)

    def sum(self, weight: Tensor) -> Tensor:
        """Return for each query the weighted sum of its keys in all tables: (Q, C)."""
        total = None
        for table, bags in zip(self._tables, self.bags(weight)):
            more = table.sum(bags)
            total = more if total is None else total.add_(more)
        assert total is not None
        return total

    def _skipping_pays(self, weight: Tensor) -> bool:
        """Whether picking the keys that count costs less than the rows of those that do not."""
        some = weight.view(-1, weight.shape[-1])[::16]
        if some.is_meta:  # shapes without numbers, to count with
            return False
        zeros = some.numel() - int(some.count_nonzero())
        return zeros * self._tables[0].channels > (some.numel() - zeros) * _PICKING

    def add_transposed(self, into: Sequence[Tensor | None], grad: Tensor, weight: Tensor) -> None:
        """Add the gradients of the values to those of each table that are asked for: (b, h, w, C)."""
        for table, target, bags in zip(self._tables, into, self.bags(weight)):
            if target is not None:
                table.add_transposed(target, grad, bags, self.lines)

    def gradients(self, four: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the offsets and the weights of a weighted sum of what is read.

        Args:
            four: (R, b, rows, W, 4, K), what is at the four pixels around each key, such as :meth:`dots`.
            weight: (R, b, rows, W, K).

        Returns:
            (2, R, b, rows, W, K) and (R, b, rows, W, K).
        """
        upper_left, upper_right, lower_left, lower_right = four.unbind(-2)
        along_upper, along_lower = upper_right - upper_left, lower_right - lower_left
        upper = torch.addcmul(upper_left, self._x, along_upper)
        down = torch.addcmul(lower_left, self._x, along_lower).sub_(upper)
        of_offsets = weight.new_empty(2, *weight.shape)
        along = along_lower.sub_(along_upper).mul_(self._y).add_(along_upper)
        for of_axis, slope, scale in zip(of_offsets, (along, down), self._scale):
            torch.mul(slope, weight, out=of_axis)
            if scale != 1:
                of_axis *= scale
        return of_offsets, upper.addcmul_(self._y, down)

    def dots(self, grad: Tensor) -> Tensor:
        """Return the products of the gradients with the values around each key: (R, b, rows, W, 4, K)."""
        index = self.index()
        dots = grad.new_empty(index.shape)
        for table, rows, into in zip(self._tables, index, dots):
            into.copy_(table.dots(grad, rows))
        return dots


def _split(delta: Tensor, start: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the whole part, int32, and the fraction of the position that an offset points to.

    The place of the query itself is split beforehand, so that the fraction stays exact in a large image.
    """
    if scale != 1:
        start = (start.double() + 0.5) * scale - 0.5
        delta.mul_(scale).add_((start - start.floor()).to(delta.dtype))
    whole = delta.floor()
    fraction = delta.sub_(whole)
    return whole.add_(start.floor().to(delta.dtype)).int(), fraction


def _spread(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the weights of the four pixels around each key: (.., 4, K) from (.., K)."""
    four = weight.new_empty(*weight.shape[:-1], 4, weight.shape[-1])
    lower = weight * y
    upper = weight - lower
    for above, part in ((0, upper), (2, lower)):
        right = torch.mul(part, x, out=four[..., above + 1, :])
        torch.sub(part, right, out=four[..., above, :])
    return four


def _bag_sum(row: Tensor, table: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    return F.embedding_bag(row, table, start, mode="sum", per_sample_weights=weight.to(table.dtype))


def _transposed(bags: Bags, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each row of the table who reads it: queries, weights, and where each row's begin."""
    if bags.row.device.type == "cpu":
        queries = bags.start.numel() - 1
        by_query = scipy.sparse.csr_array(
            (bags.weight.numpy(), bags.row.numpy(), bags.start.numpy()), shape=(queries, rows)
        )
        by_row = by_query.tocsc()
        return (
            torch.from_numpy(by_row.indices),
            torch.from_numpy(by_row.data),
            torch.from_numpy(by_row.indptr[:-1]),
        )
    row, order = torch.sort(bags.row, stable=True)
    owner = torch.searchsorted(bags.start, order.int(), right=True, out_int32=True) - 1
    begin = torch.searchsorted(row, torch.arange(rows, device=row.device, dtype=row.dtype), out_int32=True)
    return owner, bags.weight[order], begin
