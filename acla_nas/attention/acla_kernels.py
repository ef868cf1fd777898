"""The loops of ACLA on a CPU: where keys lie and what they weigh, and the gradients of all that.

Q query pixels, some rows of b images, have K keys in each of R references, maps of the query's size. Offsets
are (R, Q, K) for each axis, beyond ``base``; logits and weights likewise; mask maps are (b, h w, K or 1). The
keys of a row of queries are worked on together, one simple loop after the other, which compilers make fast.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from acla_nas.ops.jit import jit

_FAR = 1 << 24  # pixels; places farther off need not be told apart
_TOGETHER = 8  # keys whose masks' gradients one thread adds up


class Queries(NamedTuple):
    """The query pixels that a loop works on, and the maps that they read.

    Attributes:
        images: b.
        rows, w: of queries in each image, and pixels in a row.
        skipped: rows of each image before these.
        h: rows of an image.
    """

    images: int
    rows: int
    w: int
    skipped: int
    h: int


@jit()
def _find(queries, keys, line, to_x, to_y, base, left, above, across, down):
    """Write which pixel is at the upper left of the keys of a row, and how far beyond it they lie."""
    far = to_x.dtype.type(_FAR)
    y = np.int32(line % queries.rows + queries.skipped)
    for q in range(queries.w):
        for k in range(keys):
            across[q * keys + k] = to_x[q * keys + k] + base[0, k]
            down[q * keys + k] = to_y[q * keys + k] + base[1, k]
            left[q * keys + k] = q
    for i in range(len(left)):
        column, row = np.floor(across[i]), np.floor(down[i])
        across[i] -= column
        down[i] -= row
        left[i] += np.int32(min(max(column, -far), far))
        above[i] = y + np.int32(min(max(row, -far), far))


@jit()
def _four(queries, start, factor, left, above, across, down, pixel, share):
    """Write the four pixels around keys, and ``factor`` times the share of each in what is read there.

    Args:
        queries: that are worked on.
        start: the first pixel of the map.
        factor, left, above, across, down: (n,).
        pixel, share: (4 n,), written; the share of what is outside the map is 0.
    """
    zero, one = np.int32(0), np.int32(1)
    bottom, right, w, first = (
        np.int32(queries.h - 1),
        np.int32(queries.w - 1),
        np.int32(queries.w),
        np.int32(start),
    )
    none, whole = share.dtype.type(0), share.dtype.type(1)
    for i in range(len(left)):
        x, y = left[i], above[i]
        next_x, next_y = np.int32(x + one), np.int32(y + one)
        near_x, far_x = min(max(x, zero), right), min(max(next_x, zero), right)
        near_y, far_y = min(max(y, zero), bottom), min(max(next_y, zero), bottom)
        near = whole - across[i] if near_x == x else none
        far = across[i] if far_x == next_x else none
        upper = factor[i] * (whole - down[i]) if near_y == y else none
        lower = factor[i] * down[i] if far_y == next_y else none
        upper_row, lower_row = np.int32(first + near_y * w), np.int32(first + far_y * w)
        pixel[4 * i] = upper_row + near_x
        pixel[4 * i + 1] = upper_row + far_x
        pixel[4 * i + 2] = lower_row + near_x
        pixel[4 * i + 3] = lower_row + far_x
        share[4 * i] = upper * near
        share[4 * i + 1] = upper * far
        share[4 * i + 2] = lower * near
        share[4 * i + 3] = lower * far


@jit()
def _read_masks(maps, keys, pixel, share, read):
    """Write what the maps of an image, (h w, K or 1), have at the keys of a row."""
    flat, count = maps.reshape(-1), maps.shape[1]
    step = 1 if count > 1 else 0
    for q in range(len(read) // keys):
        for k in range(keys):
            i = q * keys + k
            read[i] = (
                flat[pixel[4 * i] * count + k * step] * share[4 * i]
                + flat[pixel[4 * i + 1] * count + k * step] * share[4 * i + 1]
                + flat[pixel[4 * i + 2] * count + k * step] * share[4 * i + 2]
                + flat[pixel[4 * i + 3] * count + k * step] * share[4 * i + 3]
            )


@jit(parallel=True)
def weigh(
    queries, to_x, to_y, base, parts, maps, bias, inside, outside, r, joint, share, weights, sums, opened
):
    """Write the weights of the keys of a reference: m exp(a), of which ``parts`` has the exponentials.

    Args:
        queries: that are worked on.
        to_x, to_y, base, parts: offsets and exponentials, see above; where softmax is per reference, parts
            are divided by their sum here.
        maps: of masks; empty where all keys count.
        bias: of the masks' logits.
        inside, outside: (R, K) and (R,), gates of keys and references, within the softmax and outside of it.
        r: which reference.
        joint: whether the softmax is one over all references; then ``sums`` is what is to be divided by.
        share: of all keys in the sum of the open ones that is divided by; 1 to divide by that of all keys.
        weights: (R, Q, K), written.
        sums: (Q,), added to.
        opened: (b rows,) int64, written: open keys of each row.
    """
    keys, w = parts.shape[2], queries.w
    number = w * keys
    dtype = parts.dtype
    none, one = dtype.type(0), dtype.type(1)
    adaptive = maps.size > 0
    for line in numba.prange(queries.images * queries.rows):
        first, last = line * w, (line + 1) * w
        gates = np.ones(number, dtype)
        if adaptive:
            left, above = np.empty(number, np.int32), np.empty(number, np.int32)
            across, down = np.empty(number, dtype), np.empty(number, dtype)
            pixel, quarter = np.empty(4 * number, np.int32), np.empty(4 * number, dtype)
            places_x, places_y = to_x[r, first:last].reshape(-1), to_y[r, first:last].reshape(-1)
            _find(queries, keys, line, places_x, places_y, base, left, above, across, down)
            _four(queries, 0, gates, left, above, across, down, pixel, quarter)
            _read_masks(maps[line // queries.rows], keys, pixel, quarter, gates)
            for i in range(number):
                gates[i] = one if gates[i] + bias > none else none
        count, beyond, within = none, outside[r], inside[r]
        for i in range(number):
            count += gates[i]
        opened[line] = np.int64(count)
        for q in range(w):
            part, weight = parts[r, first + q], weights[r, first + q]
            every, kept = none, none
            for k in range(keys):
                counted = part[k] * within[k]
                every += counted
                counted *= gates[q * keys + k]
                kept += counted
                weight[k] = counted * beyond
            if share < 1:
                every = kept + share * every
            if joint:
                sums[first + q] += every
            else:
                for k in range(keys):
                    part[k] /= every
                    weight[k] /= every


@jit(parallel=True)
def list_rows(queries, to_x, to_y, base, weights, start, count, begin, index, weight):
    """List which rows each query sums of a table, G x of some references after one another, a pixel a row.

    Args:
        queries, to_x, to_y, base, weights: see above; keys of weight 0 are left out.
        start, count: of the references.
        begin: (Q + 1,) int32, written: where each query's entries begin, and the last's end.
        index: int32, written: rows of the table; 4 K for each query and reference at most.
        weight: likewise, their weights.
    """
    keys, w = weights.shape[2], queries.w
    number, lines, plane = w * keys, queries.images * queries.rows, queries.h * queries.w
    dtype = weights.dtype
    counts = np.zeros(lines + 1, np.int64)
    for line in numba.prange(lines):
        found = 0
        for r in range(start, start + count):
            of_line = weights[r, line * w : (line + 1) * w].reshape(-1)
            for i in range(number):
                found += of_line[i] != 0
        counts[line + 1] = found
    starts = np.cumsum(counts)
    every = starts[-1] == lines * count * number
    for line in numba.prange(lines):
        first, last = line * w, (line + 1) * w
        left, above = np.empty(number, np.int32), np.empty(number, np.int32)
        across, down = np.empty(number, dtype), np.empty(number, dtype)
        pixel, quarter = np.empty((count, 4 * number), np.int32), np.empty((count, 4 * number), dtype)
        at = 4 * starts[line]
        direct = every and count == 1
        for r in range(count):
            places_x, places_y = (
                to_x[start + r, first:last].reshape(-1),
                to_y[start + r, first:last].reshape(-1),
            )
            _find(queries, keys, line, places_x, places_y, base, left, above, across, down)
            of_line = weights[start + r, first:last].reshape(-1)
            table = (r * queries.images + line // queries.rows) * plane
            into, weight_into = pixel[r], quarter[r]
            if direct:
                into, weight_into = index[at : at + 4 * number], weight[at : at + 4 * number]
            _four(queries, table, of_line, left, above, across, down, into, weight_into)
        for q in range(w):
            begin[first + q] = at
            if every:
                for r in range(count):
                    if not direct:
                        index[at : at + 4 * keys] = pixel[r, 4 * q * keys : 4 * (q + 1) * keys]
                        weight[at : at + 4 * keys] = quarter[r, 4 * q * keys : 4 * (q + 1) * keys]
                    at += 4 * keys
                continue
            for r in range(count):
                of_query, entry = weights[start + r, first + q], 4 * q * keys
                for k in range(keys):
                    if of_query[k] != 0:
                        for corner in range(4):
                            index[at + corner] = pixel[r, entry + 4 * k + corner]
                            weight[at + corner] = quarter[r, entry + 4 * k + corner]
                        at += 4
    begin[lines * w] = 4 * starts[-1]


@jit()
def _multiply(grad, table, keys, pixel, dots):
    """Write the products of the gradients of a row of queries with the four rows that each key reads."""
    none = dots.dtype.type(0)
    for q in range(len(grad)):
        of_query = grad[q]
        for i in range(q * keys, (q + 1) * keys):
            v0, v1, v2, v3 = (
                table[pixel[4 * i]],
                table[pixel[4 * i + 1]],
                table[pixel[4 * i + 2]],
                table[pixel[4 * i + 3]],
            )
            d0, d1, d2, d3 = none, none, none, none
            for c in range(grad.shape[1]):
                d0 += of_query[c] * v0[c]
                d1 += of_query[c] * v1[c]
                d2 += of_query[c] * v2[c]
                d3 += of_query[c] * v3[c]
            dots[4 * i], dots[4 * i + 1], dots[4 * i + 2], dots[4 * i + 3] = d0, d1, d2, d3


@jit()
def _interpolate(queries, four, left, above, across, down, read, along_x, along_y):
    """Write what is read at keys of what is at the four pixels around each, (4 n,), and its slopes."""
    h, w, none, before = np.int32(queries.h), np.int32(queries.w), read.dtype.type(0), np.int32(-1)
    for i in range(len(read)):
        x, y = left[i], above[i]
        near, far = x > before and x < w, x >= before and x < w + before
        upper, lower = y > before and y < h, y >= before and y < h + before
        v0 = four[4 * i] if upper and near else none
        v1 = four[4 * i + 1] if upper and far else none
        v2 = four[4 * i + 2] if lower and near else none
        v3 = four[4 * i + 3] if lower and far else none
        along_upper, along_lower = v1 - v0, v3 - v2
        upper_read, lower_read = v0 + across[i] * along_upper, v2 + across[i] * along_lower
        along_x[i] = along_upper + down[i] * (along_lower - along_upper)
        along_y[i] = lower_read - upper_read
        read[i] = upper_read + down[i] * (lower_read - upper_read)


@jit(parallel=True)
def differentiate(
    queries, grad, table, to_x, to_y, base, parts, weights, maps, bias, temperature, inside, outside, r,
    joint, share, of_open, totals, of_x, of_y, of_logits, of_masks, of_inside, of_outside,
):  # fmt: skip
    """Write the gradients of all that the keys of a reference are made of, from those of the weighted sums.

    With p the softmax, s the gates in it, m those of the keys, v the values, D = <dL/dy, v>, T = <dL/dy, y>:
    dL/da = s p (m D - T), dL/ds = p (m D - T), dL/dm = s p D.

    Args:
        queries, to_x, to_y, base, parts, weights, maps, bias, inside, outside, r, joint, share: as
            :func:`weigh` leaves them.
        grad: dL/dy, (Q, C).
        table: G x, (b h w, C).
        temperature: of the gates' sigmoid.
        of_open: gradient of a key's gate, beside that which it has through y.
        totals: (Q,), T, for the joint softmax.
        of_x, of_y, of_logits: (R, Q, K), written: gradients of offsets and logits.
        of_masks: (Q, K), written: gradients of what is read of the masks.
        of_inside: (b rows, K), written: what each row of queries adds to the gradient of s.
        of_outside: (b rows,), written: likewise, for the gates outside.
    """
    keys, w, plane = parts.shape[2], queries.w, queries.h * queries.w
    number, dtype = w * keys, parts.dtype
    none, one = dtype.type(0), dtype.type(1)
    adaptive = maps.size > 0
    renormalized = adaptive and share < 1
    for line in numba.prange(queries.images * queries.rows):
        first, last, image = line * w, (line + 1) * w, line // queries.rows
        left, above = np.empty(number, np.int32), np.empty(number, np.int32)
        across, down, ones = np.empty(number, dtype), np.empty(number, dtype), np.ones(number, dtype)
        pixel, four = np.empty(4 * number, np.int32), np.empty(4 * number, dtype)
        products, along_x, along_y = np.empty(number, dtype), np.empty(number, dtype), np.empty(number, dtype)
        places_x, places_y = to_x[r, first:last].reshape(-1), to_y[r, first:last].reshape(-1)
        _find(queries, keys, line, places_x, places_y, base, left, above, across, down)
        _four(queries, image * plane, ones, left, above, across, down, pixel, four)
        _multiply(grad[first:last], table, keys, pixel, four)
        _interpolate(queries, four, left, above, across, down, products, along_x, along_y)
        weight, into_x, into_y = (
            weights[r, first:last].reshape(-1),
            of_x[r, first:last].reshape(-1),
            of_y[r, first:last].reshape(-1),
        )
        for i in range(number):
            into_x[i] = weight[i] * along_x[i]
            into_y[i] = weight[i] * along_y[i]
        gates, slopes = ones, np.zeros(number, dtype)
        if adaptive:
            flat, planes = maps[image].reshape(-1), maps.shape[2]
            step = 1 if planes > 1 else 0
            for q in range(w):
                for k in range(keys):
                    for entry in range(4 * (q * keys + k), 4 * (q * keys + k) + 4):
                        four[entry] = flat[(pixel[entry] - image * plane) * planes + k * step]
            read = np.empty(number, dtype)
            _interpolate(queries, four, left, above, across, down, read, along_x, along_y)
            for i in range(number):
                slopes[i] = np.exp(-(read[i] + bias) / temperature)
            for i in range(number):
                soft = one / (one + slopes[i])
                slopes[i] = (soft - soft * soft) / temperature
                gates[i] = one if read[i] + bias > none else none
        of_inside[line] = 0
        of_outside[line] = 0
        within, beyond, of_within = inside[r], outside[r], of_inside[line]
        for q in range(w):
            part, of_logit, of_mask = parts[r, first + q], of_logits[r, first + q], of_masks[first + q]
            product, gate, slope = (
                products[q * keys : (q + 1) * keys],
                gates[q * keys : (q + 1) * keys],
                slopes[q * keys : (q + 1) * keys],
            )
            total = totals[first + q]
            if not joint:
                total = none
                for k in range(keys):
                    total += product[k] * gate[k] * part[k] * within[k]
                of_outside[line] += total
            of_all, of_every = (total, share * total) if renormalized else (none, total)
            for k in range(keys):
                counted = of_every + of_all * gate[k]
                of_switch = (product[k] * gate[k] - counted) * part[k] * beyond
                of_within[k] += of_switch
                of_logit[k] = of_switch * within[k]
                of_mask[k] = ((product[k] - of_all) * part[k] * within[k] * beyond + of_open) * slope[k]
        if adaptive:
            of_mask = of_masks[first:last].reshape(-1)
            for i in range(number):
                into_x[i] += of_mask[i] * along_x[i]
                into_y[i] += of_mask[i] * along_y[i]


@jit(parallel=True)
def scatter_masks(queries, to_x, to_y, base, of_masks, r, of_maps):
    """Add the gradients of what is read of the masks to those of their maps.

    Args:
        queries, to_x, to_y, base, r: see above.
        of_masks: (Q, K).
        of_maps: (b, h w, K or 1), added to.
    """
    keys, planes, w = of_masks.shape[1], of_maps.shape[2], queries.w
    groups = 1 if planes == 1 else (keys + _TOGETHER - 1) // _TOGETHER
    step, number, dtype = 1 if planes > 1 else 0, w * keys, of_masks.dtype
    for task in numba.prange(queries.images * groups):
        image, group = task // groups, task % groups
        least, most = keys * group // groups, keys * (group + 1) // groups
        left, above = np.empty(number, np.int32), np.empty(number, np.int32)
        across, down = np.empty(number, dtype), np.empty(number, dtype)
        pixel, quarter = np.empty(4 * number, np.int32), np.empty(4 * number, dtype)
        into = of_maps[image].reshape(-1)
        for line in range(image * queries.rows, (image + 1) * queries.rows):
            first, last = line * w, (line + 1) * w
            places_x, places_y = to_x[r, first:last].reshape(-1), to_y[r, first:last].reshape(-1)
            _find(queries, keys, line, places_x, places_y, base, left, above, across, down)
            _four(queries, 0, of_masks[first:last].reshape(-1), left, above, across, down, pixel, quarter)
            for q in range(w):
                for k in range(least, most):
                    for entry in range(4 * (q * keys + k), 4 * (q * keys + k) + 4):
                        into[pixel[entry] * planes + k * step] += quarter[entry]
