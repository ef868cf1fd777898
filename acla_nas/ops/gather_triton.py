"""The operator on a GPU: kernels in Triton, forward and backward, whose sums have a fixed order.

A value map is read as it lies where the channels of a pixel lie together, as in channels_last maps, and
copied so where not: a pixel is then a row of C values. Forward, a program sums the rows of a block of queries
over references and keys in float32. Backward, the products of a query's gradient with the rows that it read
give the gradients of offsets and weights. The gradient of a pixel is a sum over the keys around it, which
are found by sorting the keys by the pixel at their upper left: nothing is added in the order of arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_AT_ONCE = 8  # references that one program sums over: its code grows with them
_TILE, _SMALL_TILE = 1024, 512  # values of a program's tile, rows times channels
_LONGEST = 1 << 15  # sides of images are less, so that places are exact in 32 bits
_MOST = 1 << 30  # pixels and keys of a reference are fewer, so that their numbers fit into 32 bits
_OUTSIDE: tl.constexpr = tl.constexpr(65536.0)  # pixels: beyond every image from everywhere in it


def is_supported(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> bool:
    """Whether the kernels take these arguments; float64 and images of 32768 pixels a side they do not."""
    tensors = [*values, offsets, weights]
    sides = [side for t in tensors for side in t.shape[-2:]]
    pixels = [v.shape[0] * (v.shape[2] + 1) * (v.shape[3] + 1) for v in values]
    return (
        all(t.numel() > 0 and t.device == offsets.device for t in tensors)
        and all(t.dtype in (torch.float32, torch.bfloat16, torch.float16) for t in tensors)
        and max(sides) < _LONGEST
        and max(*pixels, weights[:, 0].numel()) < _MOST
    )


def forward(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """Return what :func:`acla_nas.ops.cross_layer_gather` does."""
    batch, references, keys, _, height, width = offsets.shape
    channels = values[0].shape[1]
    maps = [_Map.of(value) for value in values]
    queries = batch * height * width
    block, rows, warps = _tile(channels, 128)
    grid = (triton.cdiv(queries, rows) * triton.cdiv(channels, block),)
    several = references > _AT_ONCE
    out = offsets.new_empty(
        batch, height, width, channels, dtype=torch.float32 if several else values[0].dtype
    )
    with torch.cuda.device_of(out):
        for first in range(0, references, _AT_ONCE):
            group = slice(first, first + _AT_ONCE)
            _forward[grid](
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
                ROWS=rows,
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
    of_values: list[Tensor | None] = []
    incoming = _Map.of(grad)
    with torch.cuda.device_of(grad):
        if of_offsets is not None or of_weights is not None:
            _by_query(incoming, values, offsets, weights, of_offsets, of_weights)
        for r, (value, wanted) in enumerate(zip(values, needed[2:])):
            of_values.append(_by_pixel(incoming, offsets[:, r], weights[:, r], value) if wanted else None)
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


def _tile(channels: int, most: int, tile: int = _TILE) -> tuple[int, int, int]:
    """Return channels and rows of a program's tile, and warps for it."""
    block = min(triton.next_power_of_2(channels), most)
    if channels % 16 != 0:  # rows are read value by value, each by its place
        tile //= 2
    rows = min(max(1, tile // block), 64)
    return block, rows, max(1, block * rows // 256)


def _by_query(
    grad: _Map,
    values: Sequence[Tensor],
    offsets: Tensor,
    weights: Tensor,
    of_offsets: Tensor | None,
    of_weights: Tensor | None,
) -> None:
    """Write the gradients of offsets and weights."""
    batch, references, keys, _, height, width = offsets.shape
    channels = values[0].shape[1]
    maps = [_Map.of(value) for value in values]
    queries = batch * height * width
    block, rows, warps = _tile(channels, 64, _SMALL_TILE)
    for first in range(0, references, _AT_ONCE):
        group = slice(first, first + _AT_ONCE)
        _backward_by_query[(triton.cdiv(queries, rows),)](
            grad,
            tuple(maps[group]),
            _Planes.of(offsets[:, group]),
            _Planes.of(weights[:, group].unsqueeze(3)),
            _Planes.of((offsets if of_offsets is None else of_offsets)[:, group]),
            _Planes.of((weights if of_weights is None else of_weights)[:, group].unsqueeze(3)),
            queries,
            keys,
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


def _by_pixel(grad: _Map, offsets: Tensor, weights: Tensor, value: Tensor) -> Tensor:
    """Return the gradient of one reference's values.

    Keys are sorted by their cell, the four pixels around them. There is one more column of cells than of
    pixels, and one more row; keys that count for nothing come last.
    """
    batch, keys, height, width = weights.shape
    channels, own_height, own_width = value.shape[1:]
    into = value.new_empty(batch, own_height, own_width, channels)
    of_keys = _Planes.of(offsets.unsqueeze(1)), _Planes.of(weights[:, None, :, None])
    cells = batch * (own_height + 1) * (own_width + 1)
    cell = torch.empty(weights.shape, dtype=torch.int32, device=weights.device)
    _cells[(triton.cdiv(cell.numel(), 1024),)](
        *of_keys, cell, cell.numel(), cells, keys, height, width, own_height, own_width, SIZE=1024
    )
    cell, order = torch.sort(cell.view(-1), stable=True)
    numbers = torch.arange(cells + 1, dtype=torch.int32, device=cell.device)
    begin = torch.searchsorted(cell, numbers, out_int32=True)
    block, rows, warps = _tile(channels, 256)
    _backward_by_pixel[(batch * own_height * own_width * triton.cdiv(channels, block),)](
        grad,
        *of_keys,
        order,
        begin,
        into,
        keys,
        height,
        width,
        channels,
        own_height,
        own_width,
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
    )
    return into.permute(0, 3, 1, 2)


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
def _planes_at(planes, image, row, column):
    """Return pointers to the numbers of the first key of the first reference of queries."""
    return (
        planes.data
        + image * planes.image
        + row.to(tl.int64) * planes.row
        + column.to(tl.int64) * planes.column
    )


@triton.jit
def _rows_at(of, image, row, column):
    """Return pointers to the rows of pixels."""
    return of.rows + image * of.image + row.to(tl.int64) * of.line + column.to(tl.int64) * of.pixel


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
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(channels, BLOCK)
    query = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    is_query, is_channel = query < queries, channel < channels
    image, row, column = _query_place(query, height, width)
    offset_at, weight_at = _planes_at(offsets, image, row, column), _planes_at(weights, image, row, column)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for r in tl.static_range(COUNT):
        of = maps[r]
        x_whole, x_fraction = _start(column, width, of.width)
        y_whole, y_fraction = _start(row, height, of.height)
        key_offset, key_weight = offset_at, weight_at
        for _ in range(keys):
            dx = tl.load(key_offset, is_query, other=0.0).to(tl.float32)
            dy = tl.load(key_offset + offsets.axis, is_query, other=0.0).to(tl.float32)
            weight = tl.load(key_weight, is_query, other=0.0).to(tl.float32)
            x, right = _split(x_whole, x_fraction, dx, width, of.width)
            y, down = _split(y_whole, y_fraction, dy, height, of.height)
            upper_left, upper_right, lower_left, lower_right = _corners(of, x, y, weight != 0)
            at = _rows_at(of, image, y, x)
            lower = weight * down
            upper = weight - lower
            total += (upper - upper * right)[:, None] * _read(at, channel, upper_left, is_channel)
            total += (upper * right)[:, None] * _read(at + of.pixel, channel, upper_right, is_channel)
            at += of.line
            total += (lower - lower * right)[:, None] * _read(at, channel, lower_left, is_channel)
            total += (lower * right)[:, None] * _read(at + of.pixel, channel, lower_right, is_channel)
            key_offset += offsets.key
            key_weight += weights.key
        offset_at += offsets.reference
        weight_at += weights.reference
    into = out + query.to(tl.int64)[:, None] * channels + channel[None, :]
    is_own = is_query[:, None] & is_channel[None, :]
    if ADD:
        total += tl.load(into, is_own, other=0.0)
    tl.store(into, total.to(out.dtype.element_ty), is_own)


@triton.jit
def _backward_by_query(
    grad,
    maps,
    offsets,
    weights,
    of_offsets,
    of_weights,
    queries,
    keys,
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
    query = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_query = query < queries
    image, row, column = _query_place(query, height, width)
    offset_at, weight_at = _planes_at(offsets, image, row, column), _planes_at(weights, image, row, column)
    of_offset_at = _planes_at(of_offsets, image, row, column)
    of_weight_at = _planes_at(of_weights, image, row, column)
    grad_at = _rows_at(grad, image, row, column)
    channel = tl.arange(0, BLOCK)
    tile = _read(grad_at, channel, is_query, channel < channels)
    for r in tl.static_range(COUNT):
        of = maps[r]
        x_whole, x_fraction = _start(column, width, of.width)
        y_whole, y_fraction = _start(row, height, of.height)
        scale_x, scale_y = _quotient(of.width, width), _quotient(of.height, height)
        key_offset, key_weight = offset_at, weight_at
        into_offset, into_weight = of_offset_at, of_weight_at
        for _ in range(keys):
            dx = tl.load(key_offset, is_query, other=0.0).to(tl.float32)
            dy = tl.load(key_offset + offsets.axis, is_query, other=0.0).to(tl.float32)
            weight = tl.load(key_weight, is_query, other=0.0).to(tl.float32)
            x, right = _split(x_whole, x_fraction, dx, width, of.width)
            y, down = _split(y_whole, y_fraction, dy, height, of.height)
            counts = is_query if OF_WEIGHTS else weight != 0
            upper_left, upper_right, lower_left, lower_right = _corners(of, x, y, counts)
            upper = _rows_at(of, image, y, x)
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
                tl.store(
                    into_offset, (along * weight * scale_x).to(of_offsets.data.dtype.element_ty), is_query
                )
                slope = (below - above) * weight * scale_y
                tl.store(into_offset + of_offsets.axis, slope.to(of_offsets.data.dtype.element_ty), is_query)
            if OF_WEIGHTS:
                value = above + down * (below - above)
                tl.store(into_weight, value.to(of_weights.data.dtype.element_ty), is_query)
            key_offset += offsets.key
            key_weight += weights.key
            into_offset += of_offsets.key
            into_weight += of_weights.key
        offset_at += offsets.reference
        weight_at += weights.reference
        of_offset_at += of_offsets.reference
        of_weight_at += of_weights.reference


@triton.jit
def _key_place(entry, keys, height, width):
    """Return image (int64), key, row and column of an entry of the weights of a reference."""
    image, row, column = _query_place(entry, keys * height, width)
    return image, row // height, row % height, column


@triton.jit
def _key(offsets, weights, entry, is_entry, keys, height, width, own_height, own_width):
    """Return image, row and column of a key's query, its weight, and its place: x, right, y, down."""
    image, key, row, column = _key_place(entry, keys, height, width)
    offset_at = _planes_at(offsets, image, row, column) + key.to(tl.int64) * offsets.key
    weight_at = _planes_at(weights, image, row, column) + key.to(tl.int64) * weights.key
    dx = tl.load(offset_at, is_entry, other=0.0).to(tl.float32)
    dy = tl.load(offset_at + offsets.axis, is_entry, other=0.0).to(tl.float32)
    weight = tl.load(weight_at, is_entry, other=0.0).to(tl.float32)
    x_whole, x_fraction = _start(column, width, own_width)
    y_whole, y_fraction = _start(row, height, own_height)
    x, right = _split(x_whole, x_fraction, dx, width, own_width)
    y, down = _split(y_whole, y_fraction, dy, height, own_height)
    return image, row, column, weight, x, right, y, down


@triton.jit
def _cells(
    offsets,
    weights,
    cell,
    entries,
    cells,
    keys,
    height,
    width,
    own_height,
    own_width,
    SIZE: tl.constexpr,
):
    entry = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    is_entry = entry < entries
    image, _, _, weight, x, _, y, _ = _key(
        offsets, weights, entry, is_entry, keys, height, width, own_height, own_width
    )
    counts = (weight != 0) & (x >= -1) & (x < own_width) & (y >= -1) & (y < own_height)
    found = (image.to(tl.int32) * (own_height + 1) + y + 1) * (own_width + 1) + x + 1
    tl.store(cell + entry, tl.where(counts, found, cells), is_entry)


@triton.jit
def _backward_by_pixel(
    grad,
    offsets,
    weights,
    order,
    begin,
    into,
    keys,
    height,
    width,
    channels,
    own_height,
    own_width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(channels, BLOCK)
    pixel = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    line = pixel // own_width + pixel // (own_height * own_width)  # of cells, that above the pixel
    own_column = pixel % own_width
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for below in tl.static_range(2):
        cell = begin + (line + below) * (own_width + 1) + own_column
        first, middle, last = tl.load(cell), tl.load(cell + 1), tl.load(cell + 2)  # cells left and right
        for start in range(first, last, ROWS):
            place = start + tl.arange(0, ROWS)
            is_entry = place < last
            entry = tl.load(order + place, is_entry, other=0).to(tl.int32)
            image, row, column, weight, _, right, _, down = _key(
                offsets, weights, entry, is_entry, keys, height, width, own_height, own_width
            )
            share = weight * tl.where(place < middle, right, 1 - right)
            share *= 1 - down if below else down
            rows = _rows_at(grad, image, row, column)
            total += share[:, None] * _read(rows, channel, is_entry, is_channel)
    found = tl.sum(total, 0).to(into.dtype.element_ty)
    tl.store(into + pixel.to(tl.int64) * channels + channel, found, is_channel)
