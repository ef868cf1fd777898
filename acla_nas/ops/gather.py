"""cross_layer_gather: for every pixel, the weighted sum of values sampled in several feature maps.

Bilinear sampling is linear, so the K sampled values of a reference need never exist: each output pixel
is a weighted sum of 4K rows of the value map, which is what ``embedding_bag`` computes. The sums run
over one reference and one strip of rows, or a few small images, at a time, so that what is worked on
stays in cache and does not grow with the image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from acla_nas.errors import AclaError

_STRIP_KEYS = 1 << 16  # keys of queries worked on at a time, for each thread
_TABLE_BYTES = 1 << 23  # of a value map laid out for reading, unless a strip's keys reach farther
_PICKING = 256  # time of picking a key out, in values of C read (measured)


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
        out = values[0].new_empty(batch, height, width, values[0].shape[1])
        for images, r, strips in _strips(offsets):
            table = _Table(values[r][images], values[r].dtype)
            for rows in strips:
                keys = _Keys(
                    offsets[images, r, :, :, rows], weights[images, r, :, rows], rows.start, height, table
                )
                bags = keys.bags()
                sums = F.embedding_bag(
                    bags.row,
                    table.rows,
                    bags.start[:-1],
                    mode="sum",
                    per_sample_weights=bags.weight.to(out.dtype),
                )
                strip = out[images, rows]
                if r == 0:
                    strip.copy_(sums.view(strip.shape))
                else:
                    strip += sums.view(strip.shape)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        offsets, weights, *values = ctx.saved_tensors
        needs_offsets, needs_weights, *needs_values = ctx.needs_input_grad
        batch, _, _, _, height, _ = offsets.shape
        channels = values[0].shape[1]
        compute = torch.promote_types(values[0].dtype, torch.float32)
        grad = grads[0].permute(0, 2, 3, 1)  # B x H x W x C
        grad_offsets = torch.empty_like(offsets) if needs_offsets else None
        grad_weights = torch.empty_like(weights) if needs_weights else None
        grad_values = [
            v.new_zeros(batch, *v.shape[2:], channels) if needed else None
            for v, needed in zip(values, needs_values)
        ]
        for images, r, strips in _strips(offsets):
            table = _Table(values[r][images], compute)
            for rows in strips:
                keys = _Keys(
                    offsets[images, r, :, :, rows], weights[images, r, :, rows], rows.start, height, table
                )
                strip_grad = grad[images, rows].to(compute).reshape(-1, channels).contiguous()
                into = grad_values[r]
                if into is not None:
                    table.add_transposed(into[images], strip_grad, keys)
                if grad_offsets is None and grad_weights is None:
                    continue
                of_x, of_y, of_weight = keys.gradients(_dots(strip_grad, table.rows, keys.index()))
                if grad_weights is not None:
                    _store(of_weight, grad_weights[images, r, :, rows])
                if grad_offsets is not None:
                    _store(of_x, grad_offsets[images, r, :, 0, rows])
                    _store(of_y, grad_offsets[images, r, :, 1, rows])
        of_values = (g if g is None else g.permute(0, 3, 1, 2) for g in grad_values)
        return grad_offsets, grad_weights, *of_values


def _strips(offsets: Tensor) -> Iterator[tuple[slice, int, list[slice]]]:
    """Yield (images, reference, strips of rows) so that what belongs to a strip's keys stays in cache."""
    batch, references, keys, _, height, width = offsets.shape
    at_once = _STRIP_KEYS * torch.get_num_threads()
    rows = max(1, at_once // (keys * width))
    images = max(1, at_once // (keys * width * height))
    strips = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
    for first in range(0, batch, images):
        for r in range(references):
            yield slice(first, min(first + images, batch)), r, strips


def _load(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, K, rows, W) -> (Q, K), a copy: what is of one query lies together, as the bags want it."""
    loaded = x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=dtype)
    return loaded.copy_(x.permute(0, 2, 3, 1)).view(-1, x.shape[1])


def _store(x: Tensor, into: Tensor) -> None:
    """(Q, K) -> (b, K, rows, W)."""
    images, keys, rows, width = into.shape
    into.copy_(x.view(images, rows, width, keys).permute(0, 3, 1, 2))


class _Table:
    """Value maps (b, C, h, w) laid out a pixel a row, within a frame of zeros for what lies outside.

    Two pixels of frame on every side give any four neighbours a place, and make values and slopes 0
    outside without a test. Those to the right of a line are those to the left of the next.

    Attributes:
        rows: (.., C): lines ``first`` to ``last`` of each map, -2 the first line of the frame.
        stride: from one line to the next.
        origin: of the pixel (0, 0) of the first map.
        plane: from one map to the next.
    """

    def __init__(self, maps: Tensor, dtype: torch.dtype) -> None:
        self.maps, self.dtype = maps, dtype
        self.images, self.channels, self.height, self.width = maps.shape
        self.stride = self.width + 2
        self.first = self.last = 0
        line = self.images * self.stride * self.channels * dtype.itemsize
        self._fitting = _TABLE_BYTES // line
        self.is_whole = False
        if maps.is_meta or self.height + 4 <= self._fitting:
            self._lay_out(-2, self.height + 2)

    def hold(self, first: int, last: int) -> None:
        """Make sure that these lines are there: with those that follow, as far as they fit, or all."""
        if self.first <= first and last <= self.last:
            return
        if last - first > self._fitting:
            self._lay_out(-2, self.height + 2)
        else:
            self._lay_out(first, min(first + self._fitting, self.height + 2))

    def _lay_out(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.is_whole = last - first == self.height + 4
        self.origin = 2 - first * self.stride
        self.plane = (last - first) * self.stride
        count = self.images * self.plane
        self.rows = self.maps.new_empty(count + 2, self.channels, dtype=self.dtype)
        self.rows[count:] = 0
        lines = self.rows[:count].view(self.images, last - first, self.stride, self.channels)
        top, bottom = max(first, 0), min(last, self.height)
        lines[:, : top - first] = 0
        lines[:, bottom - first :] = 0
        lines[:, top - first : bottom - first, :2] = 0
        lines[:, top - first : bottom - first, 2:] = self.maps[:, :, top:bottom].permute(0, 2, 3, 1)

    def add_transposed(self, into: Tensor, grad: Tensor, keys: _Keys) -> None:
        """Add for each pixel the weighted sum of the gradients of the queries that read it.

        It is a bag sum over the transposed index, several times faster than scattered additions, and the
        same from run to run.

        Args:
            into: (b, h, w, C).
            grad: (Q, C).
            keys: of the queries.
        """
        owner, weight, begin = _transposed(keys.bags(), self.rows.shape[0])
        first, last = keys.lines() if self.images == 1 else (self.first, self.last)
        skipped = (first - self.first) * self.stride
        count = self.images * (last - first) * self.stride
        sums = F.embedding_bag(
            owner,
            grad,
            begin[skipped : skipped + count + 2],
            mode="sum",
            per_sample_weights=weight.to(grad.dtype),
        )
        lines = sums[:count].view(self.images, last - first, self.stride, self.channels)
        top, bottom = max(first, 0), min(last, self.height)
        into[:, top:bottom] += lines[:, top - first : bottom - first, 2:]


class _Bags(NamedTuple):
    """Rows of a table to be summed for each query: entries ``start[q]`` to ``start[q + 1]`` are its own."""

    row: Tensor
    weight: Tensor
    start: Tensor


class _Keys:
    """Where a strip's keys lie in a table, between which pixels, and with which weights.

    All is (Q, K) in memory, Q = b * rows * W, and each step one pass over it, most of them in place.

    Args:
        offsets: (b, K, 2, rows, W), of one reference.
        weights: (b, K, rows, W).
        first_row: of these rows, in the query map.
        height: of the query map.
        table: of the reference; made to hold what the keys read.
    """

    def __init__(self, offsets: Tensor, weights: Tensor, first_row: int, height: int, table: _Table) -> None:
        images, keys, _, rows, width = offsets.shape
        self.dtype = torch.promote_types(offsets.dtype, torch.float32)
        self._table = table
        self._scale = (table.width / width, table.height / height)
        where: dict[str, Any] = {"device": offsets.device, "dtype": torch.float64}
        column = torch.arange(width, **where).view(-1, 1)
        row = torch.arange(first_row, first_row + rows, **where).view(-1, 1, 1)

        dx, dy = (_load(offsets[:, :, i], self.dtype).view(images, rows, width, keys) for i in (0, 1))
        x, self._x = _split(dx, column, self._scale[0])
        y, self._y = _split(dy, row, self._scale[1])
        x.clamp_(-2, table.width)
        y.clamp_(-2, table.height)
        if not table.is_whole:
            table.hold(*_lines(y))
        self._y_pixel = y
        x = torch.add(x, y, alpha=table.stride)
        if images > 1:  # each has its own lines
            x += torch.arange(images, device=x.device, dtype=x.dtype).mul_(table.plane).view(-1, 1, 1, 1)
        self._corner = x.view(-1, keys)
        self._x, self._y = self._x.view(-1, keys), self._y.view(-1, keys)
        self._weight = _load(weights, self.dtype)

    def lines(self) -> tuple[int, int]:
        """Return the first line of the value map that the keys read, and the one after the last."""
        return _lines(self._y_pixel)

    def index(self) -> Tensor:
        """Return the rows of the four pixels around each key: (Q, 4, K) int32."""
        return self._around(self._corner)

    def _around(self, corner: Tensor) -> Tensor:
        below = self._table.stride
        pixels = torch.tensor([[0], [1], [below], [below + 1]], device=corner.device, dtype=torch.int32)
        return corner.unsqueeze(1) + pixels.add_(self._table.origin)

    def bags(self) -> _Bags:
        """Return these rows with their weights; without the keys whose weight is 0 where that is faster."""
        corner, x, y, weight = self._corner, self._x, self._y, self._weight
        keys = weight.shape[1]
        start = torch.arange(0, 4 * weight.numel() + 1, 4 * keys, dtype=torch.int32, device=weight.device)
        if self._skipping_pays():
            torch.cumsum((weight != 0).sum(1), 0, out=start[1:]).mul_(4)
            kept = weight.view(-1).nonzero().view(-1)
            corner, x, y, weight = (t.reshape(-1)[kept].unsqueeze(1) for t in (corner, x, y, weight))
        weights = weight.new_empty(weight.shape[0], 4, weight.shape[1])
        lower = weight * y
        upper = weight - lower
        for above, part in ((0, upper), (2, lower)):
            right = torch.mul(part, x, out=weights[:, above + 1])
            torch.sub(part, right, out=weights[:, above])
        return _Bags(self._around(corner).view(-1), weights.view(-1), start)

    def _skipping_pays(self) -> bool:
        """Whether picking the keys that count costs less than the rows of those that do not."""
        some = self._weight[::16]
        if some.is_meta:  # shapes without numbers, to count with
            return False
        zeros = int((some == 0).sum())
        return zeros * self._table.channels > (some.numel() - zeros) * _PICKING

    def gradients(self, dots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of dx, dy and the weights from those of the four pixels' weights.

        Args:
            dots: (Q, 4, K), products of the query's gradient with the pixel's values.

        Returns:
            three times (Q, K).
        """
        upper_left, upper_right, lower_left, lower_right = dots.unbind(1)
        along_upper, along_lower = upper_right - upper_left, lower_right - lower_left
        upper = torch.addcmul(upper_left, self._x, along_upper)
        down = torch.addcmul(lower_left, self._x, along_lower).sub_(upper)
        along = along_lower.sub_(along_upper).mul_(self._y).add_(along_upper)
        of_weight = upper.addcmul_(self._y, down)
        scale_x, scale_y = self._scale
        return along.mul_(self._weight).mul_(scale_x), down.mul_(self._weight).mul_(scale_y), of_weight


def _lines(y: Tensor) -> tuple[int, int]:
    """Return the first line that keys read, and the one after the last, from the upper of their two."""
    top, bottom = y.aminmax()
    return int(top), int(bottom) + 2


def _split(delta: Tensor, start: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the whole part, int32, and the fraction of the position that an offset points to.

    The place of the query itself is split beforehand, so that the fraction stays exact in a large image.
    """
    if scale != 1:
        start = (start + 0.5) * scale - 0.5
        delta.mul_(scale).add_((start - start.floor()).to(delta.dtype))
    whole = delta.floor()
    fraction = delta.sub_(whole)
    return whole.add_(start.floor().to(delta.dtype)).int(), fraction


def _dots(grad: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return the products of each query's gradient (Q, C) with each of its rows of the table, as index."""
    queries, entries = index.shape[0], index.shape[1] * index.shape[2]
    if table.shape[0] < entries:  # sampled_addmm takes no more entries than the matrix has columns
        table = F.pad(table, (0, 0, 0, entries - table.shape[0]))
    start = torch.arange(0, index.numel() + 1, entries, dtype=torch.int32, device=index.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its sparse CSR tensors a beta feature
        pattern = torch.sparse_csr_tensor(
            start,
            index.view(-1),
            torch.zeros(index.numel(), dtype=grad.dtype, device=index.device),
            size=(queries, table.shape[0]),
            check_invariants=False,
        )
        product = torch.sparse.sampled_addmm(pattern, grad, table.t(), beta=0.0)
    return product.values().view(index.shape)


def _transposed(bags: _Bags, rows: int) -> tuple[Tensor, Tensor, Tensor]:
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
