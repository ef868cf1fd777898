"""The loops of the operator on a CPU: which pixels keys lie between, gradients, and who reads a pixel.

A map is a table of rows of C values, a pixel a row, of which ``lines`` from ``first`` on are at hand. What is
read at a key is the weighted sum of the four rows around it; what lies outside the map has weight 0. Offsets
are (B, R, K, 2, H, W) and weights (B, R, K, H, W), as the operator takes them, or some rows of these. A loop
works on one reference r, some images, and some rows of queries.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from acla_nas.ops.jit import jit
from acla_nas.ops.vectors import prefetch

BLOCK = 32  # queries of a row worked on together: what belongs to them stays in the nearest cache
_TILE = 64  # pixels, and channels, that are turned round together
_FAR = 1 << 24  # pixels; places farther off need not be told apart


class Part(NamedTuple):
    """What a loop works on.

    Attributes:
        image, images: the first of the images, and how many; the table has as many.
        top, rows: the first row of queries in the arrays, and how many.
        skipped: rows of queries that the arrays lack before their first.
        height: of the query map.
        h, w: of the map that is read.
        first, lines: of it that the table has.
    """

    image: int
    images: int
    top: int
    rows: int
    skipped: int
    height: int
    h: int
    w: int
    first: int
    lines: int


@jit(parallel=True)
def lay_out(maps, begin, table):
    """Write pixels of maps as rows of C values, a pixel a row.

    Args:
        maps: (b, C, P), whole ones: this is faster where numbers are known to lie side by side (measured).
        begin: the first of the pixels.
        table: (b, n, C), written: n pixels, one after another.
    """
    images, pixels, channels = table.shape
    tiles = (pixels + _TILE - 1) // _TILE
    for task in numba.prange(images * tiles):
        image, first = task // tiles, task % tiles * _TILE
        last = min(first + _TILE, pixels)
        # By way of a tile of its own: channels of a map are often as far apart as the cache is long.
        tile = np.empty((_TILE, _TILE), table.dtype)
        for start in range(0, channels, _TILE):
            end = min(start + _TILE, channels)
            prefetch(maps[image, start:end, begin + last : begin + min(last + _TILE, pixels)])
            for c in range(start, end):
                line, into = maps[image, c, begin + first : begin + last], tile[c - start]
                for x in range(last - first):
                    into[x] = line[x]
            for x in range(last - first):
                row = table[image, first + x, start:end]
                for c in range(end - start):
                    row[c] = tile[c, x]


@jit()
def find(part, offsets, b, r, k, y, x, count, left, above, across, down):
    """Write which pixel is at the upper left of a key, and how far beyond it the key lies, for some queries.

    Args:
        part: that is worked on.
        offsets: (B, R, K, 2, H, W).
        b, r, k: of the key.
        y, x: of the first query, in the arrays.
        count: of queries in its row.
        left, above: (count,) int32, written.
        across, down: (count,), written: 0 .. 1.
    """
    h, w, height, width = part.h, part.w, part.height, offsets.shape[5]
    columns, rows = offsets[b, r, k, 0, y, x : x + count], offsets[b, r, k, 1, y, x : x + count]
    place = y + part.skipped
    if (h, w) == (height, width):
        for i in range(count):
            column, row = np.floor(columns[i]), np.floor(rows[i])
            across[i], down[i] = columns[i] - column, rows[i] - row
            left[i] = np.int32(x + i) + np.int32(min(max(column, -_FAR), _FAR))
            above[i] = np.int32(place) + np.int32(min(max(row, -_FAR), _FAR))
    else:
        # The place of the query itself is split beforehand, in float64, so that what is left is exact.
        y_place = (place + 0.5) * h / height - 0.5
        y_whole = np.floor(y_place)
        y_rest = offsets.dtype.type(y_place - y_whole)
        x_scale, y_scale = offsets.dtype.type(w / width), offsets.dtype.type(h / height)
        for i in range(count):
            x_place = (x + i + 0.5) * w / width - 0.5
            x_whole = np.floor(x_place)
            at_x = columns[i] * x_scale + offsets.dtype.type(x_place - x_whole)
            at_y = rows[i] * y_scale + y_rest
            column, row = np.floor(at_x), np.floor(at_y)
            across[i], down[i] = at_x - column, at_y - row
            left[i] = np.int32(x_whole) + np.int32(min(max(column, -_FAR), _FAR))
            above[i] = np.int32(y_whole) + np.int32(min(max(row, -_FAR), _FAR))


@jit()
def spread(part, factors, row, left, above, across, down, index, weight):
    """Write the rows and the weights of the four pixels around some keys of weight ``factors``.

    Args:
        part: that is worked on.
        factors: (count,).
        row: of the table, where the map begins.
        left, above, across, down: as :func:`find` writes them.
        index: (.., 4) int32, written.
        weight: (.., 4), written.
    """
    h, w, first, lines = np.int32(part.h), np.int32(part.w), np.int32(part.first), np.int32(part.lines)
    none, one = weight.dtype.type(0), weight.dtype.type(1)
    for i in range(len(factors)):
        x, y = left[i], above[i]
        upper = factors[i] * (one - down[i]) if y >= 0 and y < h else none
        lower = factors[i] * down[i] if y >= -1 and y < h - 1 else none
        near = one - across[i] if x >= 0 and x < w else none
        far = across[i] if x >= -1 and x < w - 1 else none
        near_x, far_x = min(max(x, 0), w - 1), min(max(x + 1, 0), w - 1)
        upper_row = row + min(max(y - first, 0), lines - 1) * w
        lower_row = row + min(max(y + 1 - first, 0), lines - 1) * w
        index[i, 0], weight[i, 0] = upper_row + near_x, upper * near
        index[i, 1], weight[i, 1] = upper_row + far_x, upper * far
        index[i, 2], weight[i, 2] = lower_row + near_x, lower * near
        index[i, 3], weight[i, 3] = lower_row + far_x, lower * far


@jit(parallel=True)
def list_rows(part, offsets, weights, r, begin, index, weight):
    """List which rows of the table each query sums, and with which weights; keys of weight 0 are left out.

    Args:
        part: that is worked on.
        offsets, weights, r: see above.
        begin: (images rows W + 1,) int32, written: where each query's entries begin, and the last's end.
        index: int32, written: rows of the table; 4 K for each query at most.
        weight: likewise, their weights.
    """
    image, images, top, rows = part.image, part.images, part.top, part.rows
    keys, width = weights.shape[2], weights.shape[4]
    counts = np.zeros(images * rows + 1, np.int64)
    for line in numba.prange(images * rows):
        count = 0
        for k in range(keys):
            of_key = weights[image + line // rows, r, k, top + line % rows]
            for x in range(width):
                count += of_key[x] != 0
        counts[line + 1] = count
    starts = np.cumsum(counts)
    every = starts[-1] == images * rows * width * keys
    for line in numba.prange(images * rows):
        b, y = image + line // rows, top + line % rows
        left, above = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
        across, down = np.empty(BLOCK, offsets.dtype), np.empty(BLOCK, offsets.dtype)
        indices, parts = np.empty((BLOCK, keys, 4), np.int32), np.empty((BLOCK, keys, 4), weight.dtype)
        all_indices, all_parts = indices.reshape(-1, 4), parts.reshape(-1, 4)
        row = line // rows * part.lines * part.w
        at = 4 * starts[line]
        for x in range(0, width, BLOCK):
            count = min(BLOCK, width - x)
            for k in range(keys):
                find(part, offsets, b, r, k, y, x, count, left, above, across, down)
                factors = weights[b, r, k, y, x : x + count]
                spread(part, factors, np.int32(row), left, above, across, down, indices[:, k], parts[:, k])
            kept = 0
            for i in range(count):
                begin[line * width + x + i] = at + 4 * kept
                if every:
                    kept += keys
                    continue
                for k in range(keys):  # without a branch, which could not be foreseen
                    for corner in range(4):
                        all_indices[kept, corner] = indices[i, k, corner]
                        all_parts[kept, corner] = parts[i, k, corner]
                    kept += weights[b, r, k, y, x + i] != 0
            index[at : at + 4 * kept] = all_indices.reshape(-1)[: 4 * kept]
            weight[at : at + 4 * kept] = all_parts.reshape(-1)[: 4 * kept]
            at += 4 * kept
    begin[images * rows * width] = 4 * starts[-1]


@jit(parallel=True)
def differentiate(part, grad, table, offsets, weights, r, of_offsets, of_weights):
    """Write the gradients of offsets and weights from those of the sums.

    Args:
        part: that is worked on.
        grad: (images, rows, W, C), of the sums.
        table: (images lines w, C).
        offsets, weights, r: see above.
        of_offsets: (B, R, K, 2, H, W), written.
        of_weights: (B, R, K, H, W), written.
    """
    image, images, top, rows = part.image, part.images, part.top, part.rows
    h, w, first, lines = part.h, part.w, part.first, part.lines
    keys, width, channels = weights.shape[2], weights.shape[4], grad.shape[3]
    x_scale, y_scale = weights.dtype.type(w / width), weights.dtype.type(h / part.height)
    for line in numba.prange(images * rows):
        b, y, row = image + line // rows, top + line % rows, line // rows * lines * w
        left, above = np.empty((keys, BLOCK), np.int32), np.empty((keys, BLOCK), np.int32)
        across, down = np.empty((keys, BLOCK), weights.dtype), np.empty((keys, BLOCK), weights.dtype)
        dots = np.empty((4, keys, BLOCK), grad.dtype)
        for x in range(0, width, BLOCK):
            count = min(BLOCK, width - x)
            for k in range(keys):
                find(part, offsets, b, r, k, y, x, count, left[k], above[k], across[k], down[k])
            for i in range(count):
                of_query = grad[line // rows, line % rows, x + i]
                for k in range(keys):
                    near, far = left[k, i], left[k, i] + 1
                    upper, lower = above[k, i], above[k, i] + 1
                    near_x, far_x = min(max(near, 0), w - 1), min(max(far, 0), w - 1)
                    upper_row = row + min(max(upper - first, 0), lines - 1) * w
                    lower_row = row + min(max(lower - first, 0), lines - 1) * w
                    v0, v1 = table[upper_row + near_x], table[upper_row + far_x]
                    v2, v3 = table[lower_row + near_x], table[lower_row + far_x]
                    d0, d1, d2, d3 = (
                        grad.dtype.type(0),
                        grad.dtype.type(0),
                        grad.dtype.type(0),
                        grad.dtype.type(0),
                    )
                    for c in range(channels):
                        d0 += of_query[c] * v0[c]
                        d1 += of_query[c] * v1[c]
                        d2 += of_query[c] * v2[c]
                        d3 += of_query[c] * v3[c]
                    is_near, is_far = near == near_x, far == far_x
                    is_upper, is_lower = upper >= 0 and upper < h, lower >= 0 and lower < h
                    dots[0, k, i] = d0 if is_upper and is_near else 0
                    dots[1, k, i] = d1 if is_upper and is_far else 0
                    dots[2, k, i] = d2 if is_lower and is_near else 0
                    dots[3, k, i] = d3 if is_lower and is_far else 0
            for k in range(keys):
                factor, of_weight = weights[b, r, k, y, x : x + count], of_weights[b, r, k, y, x : x + count]
                of_x, of_y = (
                    of_offsets[b, r, k, 0, y, x : x + count],
                    of_offsets[b, r, k, 1, y, x : x + count],
                )
                for i in range(count):
                    along_upper, along_lower = dots[1, k, i] - dots[0, k, i], dots[3, k, i] - dots[2, k, i]
                    upper_dot = dots[0, k, i] + across[k, i] * along_upper
                    lower_dot = dots[2, k, i] + across[k, i] * along_lower
                    of_weight[i] = upper_dot + down[k, i] * (lower_dot - upper_dot)
                    of_x[i] = x_scale * factor[i] * (along_upper + down[k, i] * (along_lower - along_upper))
                    of_y[i] = y_scale * factor[i] * (lower_dot - upper_dot)


@jit(parallel=True)
def transpose(begin, index, weight, first, parts, start, query, factor):
    """List for rows of the table which queries read them, in their order: the transpose of the list.

    Args:
        begin, index, weight: as :func:`list_rows` writes them.
        first: of the rows; none before is listed.
        parts: how many parts of the queries are worked on at the same time; changes nothing else.
        start: (rows + 1,) int32, written: where each row's entries begin, and the last's end.
        query: int32, as long as index, written.
        factor: likewise, their weights.
    """
    queries, rows = len(begin) - 1, len(start) - 1
    place = np.zeros((parts, rows), np.int32)
    for part in numba.prange(parts):
        for entry in range(begin[queries * part // parts], begin[queries * (part + 1) // parts]):
            place[part, index[entry] - first] += 1
    at = 0
    for row in range(rows):
        start[row] = at
        for part in range(parts):
            count = place[part, row]
            place[part, row] = at
            at += count
    start[rows] = at
    for part in numba.prange(parts):
        for q in range(queries * part // parts, queries * (part + 1) // parts):
            for entry in range(begin[q], begin[q + 1]):
                row = index[entry] - first
                query[place[part, row]] = q
                factor[place[part, row]] = weight[entry]
                place[part, row] += 1
