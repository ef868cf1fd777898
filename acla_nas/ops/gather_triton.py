"""The operator on a GPU: kernels in Triton, forward and backward, whose sums have a fixed order.

A value map is read as it lies where the channels of a pixel lie together, as in channels_last maps, and
copied so where not: a pixel is then a row of C values. Forward, a program sums the rows of a block of queries
over references and keys in float32. Backward, the products of a query's gradient with the rows that a key
read give the gradients of its offset and weight. The gradient of a pixel is a sum over the keys around it,
which are found by sorting all keys by the pixel at their upper left: nothing is added in order of arrival.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from acla_nas.ops.launch import launch

_AT_ONCE = 8  # references of a launch: its arguments grow with them, and forward its code
_SORTED = 1 << 22  # keys, and cells, of the references that are sorted at once, unless one has more
# A program's tile: values, rows times channels; channels at most; values of a warp. Forward half of it where
# values have four bytes.
_FORWARD_TILE, _QUERY_TILE, _PIXEL_TILE = (1024, 128, 256), (256, 64, 256), (1024, 256, 256)
_WARPS = 4096  # of a launch at least, where there are keys enough to be split: a GPU runs so many at a time
_CELLS = 256  # keys of which a program computes the cells
_LONGEST = 1 << 15  # sides of images are less, so that places are exact in 32 bits
_MOST = 1 << 30  # pixels and keys of a reference are fewer, so that their numbers fit into 32 bits
_OUTSIDE: tl.constexpr = tl.constexpr(65536.0)  # pixels: beyond every image from everywhere in it


def is_supported(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> bool:
    """Whether the kernels take these arguments; float64 and images of 32768 pixels a side they do not."""
    tensors = [*values, offsets, weights]
    sides = [side for t in tensors for side in t.shape[-2:]]
    return (
        all(t.numel() > 0 and t.device == offsets.device for t in tensors)
        and all(t.dtype in (torch.float32, torch.bfloat16, torch.float16) for t in tensors)
        and max(sides) < _LONGEST
        and max(weights[:, 0].numel(), *map(_count_cells, values)) < _MOST
    )


def forward(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """Return what :func:`acla_nas.ops.cross_layer_gather` does."""
    batch, references, keys, _, height, width = offsets.shape
    channels = values[0].shape[1]
    maps = [_Map.of(value) for value in values]
    queries = batch * height * width
    tile, most, of_warp = _FORWARD_TILE
    size = values[0].element_size() // 2
    block, rows, warps = _tile(channels, tile // size, most, of_warp // size)
    blocks = triton.cdiv(channels, block)
    parts = triton.cdiv(_WARPS, triton.cdiv(queries, rows) * blocks * warps)
    beside = min(triton.next_power_of_2(min(parts, keys)), rows)
    grid = (triton.cdiv(queries, rows // beside) * blocks,)
    several = references > _AT_ONCE
    out = offsets.new_empty(
        batch, height, width, channels, dtype=torch.float32 if several else values[0].dtype
    )
    with torch.cuda.device_of(out):
        for first in range(0, references, _AT_ONCE):
            group = slice(first, first + _AT_ONCE)
            launch(
                _forward,
                grid,
                tuple(maps[group]),
                _Planes.of(offsets[:, group]),
                _Planes.of(weights[:, group].unsqueeze(3)),
                out,
                queries,
                keys,
                height,
                width,
                channels,
                COUNT=len(maps[group]),
                ADD=first > 0,
                QUERIES=rows // beside,
                KEYS=beside,
                BLOCK=block,
                num_warps=warps,
            )
    return out.to(values[0].dtype).permute(0, 3, 1, 2)


def backward(
    grad: Tensor, values: Sequence[Tensor], offsets: Tensor, weights: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of offsets, weights and values, in this order; None where not needed."""
    of_offsets, of_weights = (
        torch.empty_like(t) if wanted else None for t, wanted in zip((offsets, weights), needed)
    )
    of_values = [
        v.new_empty(len(v), *v.shape[2:], v.shape[1]).permute(0, 3, 1, 2) if wanted else None
        for v, wanted in zip(values, needed[2:])
    ]
    grad = grad.permute(0, 2, 3, 1).contiguous()
    with torch.cuda.device_of(grad):
        if of_offsets is not None or of_weights is not None:
            _by_query(grad, values, offsets, weights, of_offsets, of_weights)
        at_once = max(1, _SORTED // max(weights[:, 0].numel(), *map(_count_cells, values)))
        for first in range(0, len(values), at_once):
            group = slice(first, first + at_once)
            if any(needed[2:][group]):
                _by_pixel(grad, offsets[:, group], weights[:, group], of_values[group])
    return [of_offsets, of_weights, *of_values]


class _Map(NamedTuple):
    """A map (B, C, h, w) as rows of C values: where they begin, and the steps between them."""

    rows: Any
    image: int
    line: int
    pixel: int
    height: int
    width: int

    @classmethod
    def of(cls, maps: Tensor) -> _Map:
        rows = maps.permute(0, 2, 3, 1)
        if rows.stride(3) != 1:
            rows = rows.contiguous()
        return cls(rows, *rows.stride()[:3], *maps.shape[2:])


class _Planes(NamedTuple):
    """Numbers of keys (B, R, K, n, H, W): where they begin, and the steps between them."""

    data: Any
    image: int
    reference: int
    key: int
    axis: int
    row: int
    column: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Planes:
        return cls(tensor, *tensor.stride())


def _tile(channels: int, values: int, most: int, of_warp: int) -> tuple[int, int, int]:
    """Return channels and rows of a program's tile, and warps for it."""
    block = min(triton.next_power_of_2(channels), most)
    if channels % 16 != 0:  # rows are read value by value, each by its place
        values //= 2
    rows = min(max(1, values // block), 64)
    return block, rows, max(1, block * rows // of_warp)


def _alike(kinds: Sequence[object]) -> Iterator[slice]:
    """Yield neighbours of the same kind, as many as a launch takes, without those of kind None."""
    first = 0
    for kind, neighbours in itertools.groupby(kinds):
        last = first + len(list(neighbours))
        if kind is not None:
            for start in range(first, last, _AT_ONCE):
                yield slice(start, min(start + _AT_ONCE, last))
        first = last


def _count_cells(value: Tensor) -> int:
    """Return how many cells, one column and one row more than pixels, a value map (B, C, h, w) has."""
    return value.shape[0] * (value.shape[2] + 1) * (value.shape[3] + 1)


def _by_query(
    grad: Tensor,
    values: Sequence[Tensor],
    offsets: Tensor,
    weights: Tensor,
    of_offsets: Tensor | None,
    of_weights: Tensor | None,
) -> None:
    """Write the gradients of offsets and weights, from that of the result (B, H, W, C)."""
    batch, _, keys, _, height, width = offsets.shape
    channels = values[0].shape[1]
    maps = [_Map.of(value) for value in values]
    queries = batch * height * width
    block, rows, warps = _tile(channels, *_QUERY_TILE)
    for group in _alike([(of.rows.dtype, *of[1:]) for of in maps]):
        programs = len(maps[group]) * triton.cdiv(queries, rows)
        keys_each = triton.cdiv(keys, triton.cdiv(_WARPS, programs * warps))
        launch(
            _backward_by_query,
            (programs * triton.cdiv(keys, keys_each),),
            grad,
            maps[group.start],
            tuple(of.rows for of in maps[group]),
            _Planes.of(offsets[:, group]),
            _Planes.of(weights[:, group].unsqueeze(3)),
            _Planes.of((offsets if of_offsets is None else of_offsets)[:, group]),
            _Planes.of((weights if of_weights is None else of_weights)[:, group].unsqueeze(3)),
            queries,
            keys,
            keys_each,
            height,
            width,
            channels,
            COUNT=len(maps[group]),
            OF_OFFSETS=of_offsets is not None,
            OF_WEIGHTS=of_weights is not None,
            ROWS=rows,
            BLOCK=block,
            BLOCKS=triton.cdiv(channels, block),
            num_warps=warps,
        )


def _by_pixel(grad: Tensor, offsets: Tensor, weights: Tensor, into: Sequence[Tensor | None]) -> None:
    """Write the gradients of values that are wanted, from that of the result (B, H, W, C)."""
    channels = grad.shape[3]
    counts = [0 if of is None else _count_cells(of) for of in into]
    first_cell = list(itertools.accumulate(counts, initial=0))
    groups = list(_alike([None if of is None else (of.dtype, of.shape) for of in into]))
    order, begin, shares = _sort_keys(offsets, weights, into, groups, first_cell)
    block, rows, warps = _tile(channels, *_PIXEL_TILE)
    for group in groups:
        maps = tuple(of.permute(0, 2, 3, 1) for of in into[group] if of is not None)
        pixels = maps[0][..., 0].numel()
        launch(
            _backward_by_pixel,
            (len(maps) * pixels * triton.cdiv(channels, block),),
            grad,
            order,
            begin[first_cell[group.start] :],
            shares,
            maps,
            order.numel(),
            grad[..., 0].numel(),
            channels,
            pixels,
            *maps[0].shape[1:3],
            COUNT=len(maps),
            ROWS=rows,
            BLOCK=block,
            num_warps=warps,
        )


def _sort_keys(
    offsets: Tensor,
    weights: Tensor,
    maps: Sequence[Tensor | None],
    groups: Sequence[slice],
    first_cell: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the keys in the order of their cells, where each cell begins, and the shares of keys.

    A cell is between four pixels, of which a key's shares are those of bilinear reading, times its weight.
    There is one more column of cells than of pixels, and one more row. Cells of a reference follow those of
    the one before, and keys that count for nothing come last.
    """
    batch, _, keys, height, width = weights.shape
    queries, cells, device = batch * height * width, first_cell[-1], weights.device
    place = list(itertools.accumulate((of is not None for of in maps), initial=0))
    cell = torch.empty(place[-1], keys, queries, dtype=torch.int32, device=device)
    shares = torch.empty(4, *cell.shape, device=device)
    for group in groups:
        launch(
            _cells,
            ((group.stop - group.start) * keys * triton.cdiv(queries, _CELLS),),
            _Planes.of(offsets[:, group]),
            _Planes.of(weights[:, group].unsqueeze(3)),
            cell[place[group.start] :],
            shares[:, place[group.start] :],
            first_cell[group.start],
            cells,
            cell.numel(),
            queries,
            keys,
            height,
            width,
            *maps[group.start].shape[2:],
            SIZE=_CELLS,
            num_warps=4,
        )
    cell, order = torch.sort(cell.view(-1), stable=True)
    numbers = torch.arange(cells + 1, dtype=torch.int32, device=device)
    return order, torch.searchsorted(cell, numbers, out_int32=True), shares


@triton.jit
def _quotient(a, b):
    """Return a / b in float32, rounded to nearest."""
    return tl.div_rn(tl.cast(a, tl.float32), tl.cast(b, tl.float32))


@triton.jit
def _start(place, size, own):
    """Return the whole part and the fraction of a query's own place in a map of another size.

    The place (place + 1/2) own / size - 1/2 is computed in whole numbers: it is exact in a large image.
    """
    parts = (2 * place + 1) * own + size  # of 2 size a pixel, from one pixel before the first
    whole = parts // (2 * size)
    return whole - 1, _quotient(parts - whole * 2 * size, 2 * size)


@triton.jit
def _split(whole, fraction, delta, size, own):
    """Return the whole part, clamped to what is outside for sure, and the fraction of a key's place."""
    place = fraction + delta * _quotient(own, size)
    floor = tl.floor(place)
    return whole + tl.clamp(floor, -_OUTSIDE, _OUTSIDE).to(tl.int32), place - floor


@triton.jit
def _query_place(query, height, width):
    """Return image (int64), row and column of a query."""
    return (query // (height * width)).to(tl.int64), query // width % height, query % width


@triton.jit
def _planes_at(planes, reference, image, key, row, column):
    """Return pointers to the numbers of keys."""
    return (
        planes.data
        + tl.cast(reference, tl.int64) * planes.reference
        + image * planes.image
        + key.to(tl.int64) * planes.key
        + row.to(tl.int64) * planes.row
        + column.to(tl.int64) * planes.column
    )


@triton.jit
def _load_key(offset, axis, weight, is_key):
    """Return offsets along x and y and weights of keys in float32, 0 where there is none."""
    dx = tl.load(offset, is_key, other=0.0).to(tl.float32)
    dy = tl.load(offset + axis, is_key, other=0.0).to(tl.float32)
    return dx, dy, tl.load(weight, is_key, other=0.0).to(tl.float32)


@triton.jit
def _steps(of, image, row, column):
    """Return the steps from where a map begins to the rows of pixels."""
    return image * of.image + row.to(tl.int64) * of.line + column.to(tl.int64) * of.pixel


@triton.jit
def _choose(pointers, number, COUNT: tl.constexpr):
    """Return the pointer of that number."""
    found = pointers[0]
    for i in tl.static_range(1, COUNT):
        found = tl.where(number == i, pointers[i], found)
    return found


@triton.jit
def _corners(of, x, y, counts):
    """Return which of the four pixels around keys are to be read: upper left, upper right, lower left, .."""
    upper, lower = counts & (y >= 0) & (y < of.height), counts & (y >= -1) & (y < of.height - 1)
    left, right = (x >= 0) & (x < of.width), (x >= -1) & (x < of.width - 1)
    return upper & left, upper & right, lower & left, lower & right


@triton.jit
def _read(rows, channel, is_row, is_channel):
    """Return the tile of rows and channels in float32, 0 where there is none."""
    tile = tl.load(rows[:, None] + channel[None, :], is_row[:, None] & is_channel[None, :], other=0.0)
    return tile.to(tl.float32)


@triton.jit
def _forward(
    maps,
    offsets,
    weights,
    out,
    queries,
    keys,
    height,
    width,
    channels,
    COUNT: tl.constexpr,
    ADD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(channels, BLOCK)
    first_query = tl.program_id(0) // blocks * QUERIES
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    pair = tl.arange(0, KEYS * QUERIES)  # of a query and one of the keys that are summed side by side
    query, key = first_query + pair % QUERIES, pair // QUERIES
    image, row, column = _query_place(query, height, width)
    total = tl.zeros((KEYS * QUERIES, BLOCK), tl.float32)
    for r in tl.static_range(COUNT):
        of = maps[r]
        x_whole, x_fraction = _start(column, width, of.width)
        y_whole, y_fraction = _start(row, height, of.height)
        offset_at = _planes_at(offsets, r, image, key, row, column)
        weight_at = _planes_at(weights, r, image, key, row, column)
        for first in range(0, keys, KEYS):
            is_key = (query < queries) & (first + key < keys)
            dx, dy, weight = _load_key(offset_at, offsets.axis, weight_at, is_key)
            x, right = _split(x_whole, x_fraction, dx, width, of.width)
            y, down = _split(y_whole, y_fraction, dy, height, of.height)
            upper_left, upper_right, lower_left, lower_right = _corners(of, x, y, weight != 0)
            at = of.rows + _steps(of, image, y, x)
            lower = weight * down
            upper = weight - lower
            total += (upper - upper * right)[:, None] * _read(at, channel, upper_left, is_channel)
            total += (upper * right)[:, None] * _read(at + of.pixel, channel, upper_right, is_channel)
            at += of.line
            total += (lower - lower * right)[:, None] * _read(at, channel, lower_left, is_channel)
            total += (lower * right)[:, None] * _read(at + of.pixel, channel, lower_right, is_channel)
            offset_at += tl.cast(offsets.key, tl.int64) * KEYS
            weight_at += tl.cast(weights.key, tl.int64) * KEYS
    sums = tl.sum(tl.reshape(total, (KEYS, QUERIES, BLOCK)), 0)
    own = first_query + tl.arange(0, QUERIES)
    into = out + own.to(tl.int64)[:, None] * channels + channel[None, :]
    is_own = (own < queries)[:, None] & is_channel[None, :]
    if ADD:
        sums += tl.load(into, is_own, other=0.0)
    tl.store(into, sums.to(out.dtype.element_ty), is_own)


@triton.jit
def _backward_by_query(
    grad,
    of,
    maps,
    offsets,
    weights,
    of_offsets,
    of_weights,
    queries,
    keys,
    keys_each,
    height,
    width,
    channels,
    COUNT: tl.constexpr,
    OF_OFFSETS: tl.constexpr,
    OF_WEIGHTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    parts, blocks = tl.cdiv(keys, keys_each), tl.cdiv(queries, ROWS)
    first = tl.program_id(0) % parts * keys_each
    query = tl.program_id(0) // parts % blocks * ROWS + tl.arange(0, ROWS)
    reference = tl.program_id(0) // parts // blocks
    is_query = query < queries
    image, row, column = _query_place(query, height, width)
    offset_at = _planes_at(offsets, reference, image, first, row, column)
    weight_at = _planes_at(weights, reference, image, first, row, column)
    of_offset_at = _planes_at(of_offsets, reference, image, first, row, column)
    of_weight_at = _planes_at(of_weights, reference, image, first, row, column)
    grad_at = grad + query.to(tl.int64) * channels
    start = _choose(maps, reference, COUNT)
    channel = tl.arange(0, BLOCK)
    tile = _read(grad_at, channel, is_query, channel < channels)
    x_whole, x_fraction = _start(column, width, of.width)
    y_whole, y_fraction = _start(row, height, of.height)
    scale_x, scale_y = _quotient(of.width, width), _quotient(of.height, height)
    for _ in range(first, tl.minimum(first + keys_each, keys)):
        dx, dy, weight = _load_key(offset_at, offsets.axis, weight_at, is_query)
        x, right = _split(x_whole, x_fraction, dx, width, of.width)
        y, down = _split(y_whole, y_fraction, dy, height, of.height)
        counts = is_query if OF_WEIGHTS else weight != 0
        upper_left, upper_right, lower_left, lower_right = _corners(of, x, y, counts)
        upper = start + _steps(of, image, y, x)
        lower = upper + of.line
        a = tl.zeros((ROWS,), tl.float32)
        b, c, d = a, a, a
        for block in tl.static_range(BLOCKS):
            own = channel + block * BLOCK
            is_own = own < channels
            if BLOCKS > 1:
                tile = _read(grad_at, own, is_query, is_own)
            a += tl.sum(tile * _read(upper, own, upper_left, is_own), 1)
            b += tl.sum(tile * _read(upper + of.pixel, own, upper_right, is_own), 1)
            c += tl.sum(tile * _read(lower, own, lower_left, is_own), 1)
            d += tl.sum(tile * _read(lower + of.pixel, own, lower_right, is_own), 1)
        above, below = a + right * (b - a), c + right * (d - c)
        if OF_OFFSETS:
            along = (b - a) + down * ((d - c) - (b - a))
            tl.store(of_offset_at, (along * weight * scale_x).to(of_offsets.data.dtype.element_ty), is_query)
            slope = (below - above) * weight * scale_y
            tl.store(of_offset_at + of_offsets.axis, slope.to(of_offsets.data.dtype.element_ty), is_query)
        if OF_WEIGHTS:
            value = above + down * (below - above)
            tl.store(of_weight_at, value.to(of_weights.data.dtype.element_ty), is_query)
        offset_at += offsets.key
        weight_at += weights.key
        of_offset_at += of_offsets.key
        of_weight_at += of_weights.key


@triton.jit
def _cells(
    offsets,
    weights,
    cell,
    shares,
    first_cell,
    all_cells,
    entries,
    queries,
    keys,
    height,
    width,
    own_height,
    own_width,
    SIZE: tl.constexpr,
):
    """Write each key's cell, and the shares of its query's gradient that the four pixels around it get."""
    blocks = tl.cdiv(queries, SIZE)
    plane = tl.program_id(0) // blocks
    query = tl.program_id(0) % blocks * SIZE + tl.arange(0, SIZE)
    is_query = query < queries
    reference, key = plane // keys, plane % keys
    image, row, column = _query_place(query, height, width)
    dx, dy, weight = _load_key(
        _planes_at(offsets, reference, image, key, row, column),
        offsets.axis,
        _planes_at(weights, reference, image, key, row, column),
        is_query,
    )
    x_whole, x_fraction = _start(column, width, own_width)
    y_whole, y_fraction = _start(row, height, own_height)
    x, right = _split(x_whole, x_fraction, dx, width, own_width)
    y, down = _split(y_whole, y_fraction, dy, height, own_height)
    counts = (weight != 0) & (x >= -1) & (x < own_width) & (y >= -1) & (y < own_height)
    number = reference * (queries // (height * width)) + image.to(tl.int32)  # of an image
    found = first_cell + (number * (own_height + 1) + y + 1) * (own_width + 1) + x + 1
    entry = plane * queries + query
    tl.store(cell + entry, tl.where(counts, found, all_cells), is_query)
    lower = weight * down
    upper = weight - lower
    share = shares + entry
    tl.store(share, upper - upper * right, is_query)
    share += entries
    tl.store(share, upper * right, is_query)
    share += entries
    tl.store(share, lower - lower * right, is_query)
    share += entries
    tl.store(share, lower * right, is_query)


@triton.jit
def _backward_by_pixel(
    grad,
    order,
    begin,
    shares,
    into,
    entries,
    queries,
    channels,
    pixels,
    own_height,
    own_width,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(channels, BLOCK)
    pixel = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    line = pixel // own_width + pixel // (own_height * own_width)  # of cells, that above the pixel
    above = begin + line * (own_width + 1) + pixel % own_width  # of the cell above on the left
    below = above + own_width + 1
    above_left, above_right, above_end = tl.load(above), tl.load(above + 1), tl.load(above + 2)
    below_left, below_right, below_end = tl.load(below), tl.load(below + 1), tl.load(below + 2)
    number = above_end - above_left
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, number + below_end - below_left, ROWS):
        place = start + tl.arange(0, ROWS)
        is_below = place >= number
        place += tl.where(is_below, below_left - number, above_left)
        is_entry = place < tl.where(is_below, below_end, above_end)
        is_left = place < tl.where(is_below, below_right, above_right)
        entry = tl.load(order + place, is_entry, other=0).to(tl.int32)
        corner = tl.where(is_below, 0, 2) + tl.where(is_left, 1, 0)  # the pixel's, seen from the key
        share = tl.load(shares + corner.to(tl.int64) * entries + entry, is_entry, other=0.0)
        rows = grad + (entry % queries).to(tl.int64) * channels
        total += share[:, None] * _read(rows, channel, is_entry, is_channel)
    found = tl.sum(total, 0)
    own = _choose(into, pixel // pixels, COUNT) + (pixel % pixels).to(tl.int64) * channels + channel
    tl.store(own, found.to(into[0].dtype.element_ty), is_channel)
