"""The loops of ACLA on a CPU: where keys lie, what they weigh, what is read there, and the gradients of it.

Q query pixels, some rows of b images, have K keys in each of R references, maps of the query's size.
``pixels``, (Q, C), and ``scores``, (C, R 3 K), have the query and what projects it to its keys: for each
reference the offsets beyond ``base``, (K, 2), along x and along y, and the logits. ``tables``,
(R, b, h w, C + masks), have a row for each pixel of a reference: G x, and M x behind it where there are
masks, one or K. The keys of a row of queries are worked on together, one simple loop after the other, which
compilers make fast.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from acla_nas.ops.jit import jit
from acla_nas.ops.products import multiply
from acla_nas.ops.rows import add_rows, add_to_rows
from acla_nas.ops.vectors import power_of_two

_STRIP = 48  # pixels projected together: they stay in the nearest cache
_FAR = 1 << 24  # pixels; places farther off need not be told apart
_LOWEST, _HIGHEST = -80.0, 20.0  # exponents are cut off here; only what is gated off could have a higher one
_LOG2_E, _LN_2 = 1.4426950408889634, 0.6931471805599453


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


class Softmax(NamedTuple):
    """How exponentials of logits become weights.

    Attributes:
        joint: whether over all references, or over the keys of each.
        share: of all keys in the sum of the open ones that is divided by; 1 to divide by that of all keys.
        masks: how many logits of gates each pixel has: 0 where all keys count, 1, or K.
        bias: of these logits.
        temperature: of their sigmoid.
    """

    joint: bool
    share: float
    masks: int
    bias: float
    temperature: float


@jit()
def _find(queries, line, places, keys, base, left, above, across, down):
    """Write which pixel is at the upper left of the keys of a row, and how far beyond it they lie.

    Args:
        queries, line, base: that are worked on, which of their rows, and where keys are at first.
        places: (w, 3, K), of a reference.
        keys: K.
        left, above, across, down: (w K,), written.
    """
    far = across.dtype.type(_FAR)
    y = np.int32(line % queries.rows + queries.skipped)
    for q in range(queries.w):
        for k in range(keys):
            across[q * keys + k] = places[q, 0, k] + base[k, 0]
            down[q * keys + k] = places[q, 1, k] + base[k, 1]
            left[q * keys + k] = q
    for i in range(len(left)):
        column, row = np.floor(across[i]), np.floor(down[i])
        across[i] -= column
        down[i] -= row
        left[i] += np.int32(min(max(column, -far), far))
        above[i] = y + np.int32(min(max(row, -far), far))


@jit()
def _four(queries, left, above, across, down, pixel, share):
    """Write the four pixels around keys, and the share of each in what is read there.

    Args:
        queries: that are worked on.
        left, above, across, down: (n,).
        pixel, share: (4 n,), written; the share of what is outside the map is 0.
    """
    zero, one = np.int32(0), np.int32(1)
    bottom, right, w = np.int32(queries.h - 1), np.int32(queries.w - 1), np.int32(queries.w)
    none, whole = share.dtype.type(0), share.dtype.type(1)
    for i in range(len(left)):
        x, y = left[i], above[i]
        next_x, next_y = np.int32(x + one), np.int32(y + one)
        near_x, far_x = min(max(x, zero), right), min(max(next_x, zero), right)
        near_y, far_y = min(max(y, zero), bottom), min(max(next_y, zero), bottom)
        near = whole - across[i] if near_x == x else none
        far = across[i] if far_x == next_x else none
        upper = whole - down[i] if near_y == y else none
        lower = down[i] if far_y == next_y else none
        upper_row, lower_row = np.int32(near_y * w), np.int32(far_y * w)
        pixel[4 * i] = upper_row + near_x
        pixel[4 * i + 1] = upper_row + far_x
        pixel[4 * i + 2] = lower_row + near_x
        pixel[4 * i + 3] = lower_row + far_x
        share[4 * i] = upper * near
        share[4 * i + 1] = upper * far
        share[4 * i + 2] = lower * near
        share[4 * i + 3] = lower * far


@jit()
def _exponentiate(x):
    """Replace numbers (n,) by their exponentials, to rounding; what is not a number stays so."""
    dtype = x.dtype.type
    lowest, highest, half = dtype(_LOWEST), dtype(_HIGHEST), dtype(0.5)
    for i in range(len(x)):
        exponent = lowest if x[i] < lowest else highest if x[i] > highest else x[i]
        power = np.floor(exponent * dtype(_LOG2_E) + half)
        f = exponent - power * dtype(_LN_2)  # in -0.35 .. 0.35, where the series needs 12 terms
        e = dtype(1 / 479001600) * f + dtype(1 / 39916800)
        e = e * f + dtype(1 / 3628800)
        e = e * f + dtype(1 / 362880)
        e = e * f + dtype(1 / 40320)
        e = e * f + dtype(1 / 5040)
        e = e * f + dtype(1 / 720)
        e = e * f + dtype(1 / 120)
        e = e * f + dtype(1 / 24)
        e = e * f + dtype(1 / 6)
        e = e * f + half
        e = e * f + dtype(1)
        x[i] = (e * f + dtype(1)) * power_of_two(power)


@jit()
def _shift(parts, gates, keys, shift):
    """Write the largest logit of each query that is not gated off: (w,), from logits and gates (S, w K)."""
    dtype = parts.dtype.type
    none, least = dtype(0), dtype(-np.inf)
    top = np.full(parts.shape[1], least)
    for s in range(len(parts)):
        part, gate = parts[s], gates[s]
        for i in range(len(top)):
            logit = part[i] if gate[i] != none else least
            top[i] = logit if logit > top[i] else top[i]
    for q in range(len(shift)):
        largest = least
        for k in range(keys):
            largest = top[q * keys + k] if top[q * keys + k] > largest else largest
        shift[q] = largest if largest > least else none


@jit()
def _take_parts(logits, inside, softmax, keys, shift, is_known, parts, gates):
    """Write the exponentials of the logits of a row, (R, w K), and repeat the gates within the softmax.

    Args:
        logits: (w, R, K).
        inside: (R, K).
        softmax, keys: as elsewhere.
        shift: (w,), what is subtracted from the logits of a joint softmax; written unless it is known.
        is_known: whether it is.
        parts, gates: written.
    """
    w = len(logits)
    for r in range(len(parts)):
        part, gate = parts[r], gates[r]
        for q in range(w):
            for k in range(keys):
                part[q * keys + k] = logits[q, r, k]
                gate[q * keys + k] = inside[r, k]
    if softmax.joint and not is_known:
        _shift(parts, gates, keys, shift)
    for r in range(len(parts)):
        part = parts[r]
        if not softmax.joint:
            _shift(parts[r : r + 1], gates[r : r + 1], keys, shift)
        for q in range(w):
            for k in range(keys):
                part[q * keys + k] -= shift[q]
        _exponentiate(part)


@jit()
def _place(pixel, width, at):
    """Return where a channel of a pixel is: unsigned, so that it is not tested for counting from the end."""
    return np.uintp(pixel) * np.uintp(width) + np.uintp(at)


@jit()
def _read_masks(table, channels, keys, masks, pixel, share, read):
    """Write what the masks of a map have at the keys of a row."""
    step = 1 if masks > 1 else 0
    width, flat = table.shape[1], table.reshape(-1)
    for q in range(len(read) // keys):
        for k in range(keys):
            i, at = q * keys + k, channels + k * step
            read[i] = (
                flat[_place(pixel[4 * i], width, at)] * share[4 * i]
                + flat[_place(pixel[4 * i + 1], width, at)] * share[4 * i + 1]
                + flat[_place(pixel[4 * i + 2], width, at)] * share[4 * i + 2]
                + flat[_place(pixel[4 * i + 3], width, at)] * share[4 * i + 3]
            )


@jit()
def _weigh(softmax, keys, part, inside, outside, gates, sums, weight):
    """Write the weights of the keys of a row in one reference, and return how many are open.

    Args:
        softmax, keys: as elsewhere.
        part: (w K,), exponentials; where softmax is per reference, they are divided by their sum here.
        inside: (w K,), gates of keys and references within the softmax.
        outside: of the reference, beyond it.
        gates: (w K,), of keys, 0 or 1.
        sums: (w,), what is to be divided by where softmax is joint: added to.
        weight: (w K,), written.
    """
    none = part.dtype.type(0)
    count = none
    for i in range(len(part)):
        count += gates[i]
        weight[i] = part[i] * inside[i]
    for q in range(len(sums)):
        every, kept = none, none
        for i in range(q * keys, (q + 1) * keys):
            every += weight[i]
            kept += weight[i] * gates[i]
        if softmax.share < 1:
            every = kept + softmax.share * every
        if softmax.joint:
            sums[q] += every
        else:
            for i in range(q * keys, (q + 1) * keys):
                part[i] /= every
                weight[i] /= every
    for i in range(len(part)):
        weight[i] *= gates[i] * outside
    return np.int64(count)


@jit()
def _list(keys, pixel, share, weight, begin):
    """List which pixels each query of a row reads, and what it multiplies them with, in place.

    Args:
        keys: K.
        pixel, share: (4 w K,), of all keys; overwritten by those of keys whose weight is not 0.
        weight: (w K,).
        begin: (w + 1,), written: where each query's entries begin, and the last's end.
    """
    at, none, kept = 0, weight.dtype.type(0), 0
    for i in range(len(weight)):
        kept += weight[i] != none
        share[4 * i] *= weight[i]
        share[4 * i + 1] *= weight[i]
        share[4 * i + 2] *= weight[i]
        share[4 * i + 3] *= weight[i]
    for q in range(len(begin)):
        begin[q] = 4 * q * keys
    if kept == len(weight):
        return
    for q in range(len(begin) - 1):
        begin[q] = at
        for i in range(q * keys, (q + 1) * keys):  # without a branch, which could not be foreseen
            for corner in range(4):
                pixel[at + corner] = pixel[4 * i + corner]
                share[at + corner] = share[4 * i + corner]
            at += 4 * (weight[i] != none)
    begin[-1] = at


@jit(parallel=True)
def project(features, matrix, table, channels):
    """Write the table of a reference, and return the least that masks have there: infinity without masks.

    Args:
        features: (b, C, P).
        matrix: (C, W), what each pixel is multiplied with.
        table: (b, P, W), written.
        channels: of it before the masks.
    """
    images, _, pixels = features.shape
    strips = (pixels + _STRIP - 1) // _STRIP
    least = np.full((images * strips, table.shape[2] - channels), np.inf, table.dtype)
    for task in numba.prange(images * strips):
        image, first = task // strips, task % strips * _STRIP
        rows = table[image, first : min(first + _STRIP, pixels)]
        multiply(features[image, :, first : first + len(rows)].T, matrix, rows)
        for i in range(len(rows)):
            for k in range(least.shape[1]):
                least[task, k] = min(rows[i, channels + k], least[task, k])
    return least.min() if least.size > 0 else np.inf


@jit(parallel=True)
def sum_keys(queries, softmax, pixels, scores, base, inside, outside, tables, y, log_sums, opened):
    """Write y of Eq. 6: the sums of what is read at all keys, weighted.

    Args:
        queries, softmax, pixels, scores, base, tables: see above.
        inside, outside: (R, K) and (R,), gates of keys and references, within the softmax and outside of it.
        y: (Q, C), written.
        log_sums: (Q,), written: logarithms of what a joint softmax divides by.
        opened: (b rows,) int64, written: open keys of each row.
    """
    references, keys = inside.shape
    channels, w, number, dtype = y.shape[1], queries.w, queries.w * keys, y.dtype
    none, one = dtype.type(0), dtype.type(1)
    for line in numba.prange(queries.images * queries.rows):
        first, last = line * w, (line + 1) * w
        projected = np.empty((w, references * 3 * keys), dtype)
        found = projected.reshape(w, references, 3, keys)
        left, above = np.empty(number, np.int32), np.empty(number, np.int32)
        across, down = np.empty(number, dtype), np.empty(number, dtype)
        pixel, share = np.empty(4 * number, np.int32), np.empty(4 * number, dtype)
        gates, weight, sums = np.ones(number, dtype), np.empty(number, dtype), np.zeros(w, dtype)
        parts, switches = np.empty((references, number), dtype), np.empty((references, number), dtype)
        shift, into, begin, count = log_sums[first:last], y[first:last], np.empty(w + 1, np.int32), 0
        multiply(pixels[first:last], scores, projected)
        _take_parts(found[:, :, 2], inside, softmax, keys, shift, False, parts, switches)
        into[:] = none
        for r in range(references):
            table = tables[r, line // queries.rows]
            _find(queries, line, found[:, r], keys, base, left, above, across, down)
            _four(queries, left, above, across, down, pixel, share)
            if softmax.masks > 0:
                _read_masks(table, channels, keys, softmax.masks, pixel, share, gates)
                for i in range(number):
                    gates[i] = one if gates[i] + softmax.bias > none else none
            count += _weigh(softmax, keys, parts[r], switches[r], outside[r], gates, sums, weight)
            _list(keys, pixel, share, weight, begin)
            for q in range(w):
                add_rows(table, pixel, share, begin[q], begin[q + 1], into[q])
        opened[line] = count
        if softmax.joint:
            for q in range(w):
                shift[q] += np.log(sums[q])
                into[q] /= sums[q]


@jit()
def _multiply(grad, table, channels, keys, pixel, dots):
    """Write the products of the gradients of a row of queries with the four rows that each key reads."""
    none = dots.dtype.type(0)
    for q in range(len(grad)):
        of_query = grad[q]
        for i in range(q * keys, (q + 1) * keys):
            v0, v1 = table[pixel[4 * i]], table[pixel[4 * i + 1]]
            v2, v3 = table[pixel[4 * i + 2]], table[pixel[4 * i + 3]]
            d0, d1, d2, d3 = none, none, none, none
            for c in range(channels):
                d0 += of_query[c] * v0[c]
                d1 += of_query[c] * v1[c]
                d2 += of_query[c] * v2[c]
                d3 += of_query[c] * v3[c]
            dots[4 * i], dots[4 * i + 1], dots[4 * i + 2], dots[4 * i + 3] = d0, d1, d2, d3


@jit()
def _take_masks(table, channels, keys, masks, pixel, four):
    """Write the masks' logits at the four pixels around the keys of a row."""
    step = 1 if masks > 1 else 0
    width, flat = table.shape[1], table.reshape(-1)
    for q in range(len(four) // (4 * keys)):
        for k in range(keys):
            i, at = 4 * (q * keys + k), channels + k * step
            four[i] = flat[_place(pixel[i], width, at)]
            four[i + 1] = flat[_place(pixel[i + 1], width, at)]
            four[i + 2] = flat[_place(pixel[i + 2], width, at)]
            four[i + 3] = flat[_place(pixel[i + 3], width, at)]


@jit()
def _interpolate(queries, four, left, above, across, down, read, along_x, along_y):
    """Write what is read at keys of what is at the four pixels around each, (4 n,), and its slopes."""
    dtype = read.dtype.type
    h, w, before, none, one = np.int32(queries.h), np.int32(queries.w), np.int32(-1), dtype(0), dtype(1)
    for i in range(len(read)):
        x, y = left[i], above[i]
        near = one if x > before and x < w else none
        far = one if x >= before and x < w + before else none
        upper = one if y > before and y < h else none
        lower = one if y >= before and y < h + before else none
        v0, v1 = four[4 * i] * (upper * near), four[4 * i + 1] * (upper * far)
        v2, v3 = four[4 * i + 2] * (lower * near), four[4 * i + 3] * (lower * far)
        along_upper, along_lower = v1 - v0, v3 - v2
        upper_read, lower_read = v0 + across[i] * along_upper, v2 + across[i] * along_lower
        along_x[i] = along_upper + down[i] * (along_lower - along_upper)
        along_y[i] = lower_read - upper_read
        read[i] = upper_read + down[i] * (lower_read - upper_read)


@jit()
def _gate(softmax, read, gates, slopes):
    """Write the gates of keys whose masks' logits are read, and the slopes of their sigmoid."""
    dtype = read.dtype.type
    none, one, bias, temperature = dtype(0), dtype(1), dtype(softmax.bias), dtype(softmax.temperature)
    for i in range(len(read)):
        logit = read[i] + bias
        gates[i] = one if logit > none else none
        slopes[i] = -abs(logit) / temperature
    _exponentiate(slopes)
    for i in range(len(read)):
        slopes[i] /= (one + slopes[i]) * (one + slopes[i]) * temperature


@jit(parallel=True)
def differentiate(
    queries, softmax, pixels, scores, base, inside, outside, tables, grad, log_sums, totals, of_open,
    found, of_found, weights, of_masks, of_inside, of_outside,
):  # fmt: skip
    """Write the gradients of all that keys are made of, from those of the weighted sums.

    With p the softmax, s the gates in it, m those of the keys, v the values, D = <dL/dy, v>, T = <dL/dy, y>:
    dL/da = s p (m D - T), dL/ds = p (m D - T), dL/dm = s p D.

    Args:
        queries, softmax, pixels, scores, base, tables: see above.
        inside, outside, log_sums: as for :func:`sum_keys`, and as it leaves them.
        grad: dL/dy, (Q, C).
        totals: (Q,), T, for the joint softmax.
        of_open: gradient of a key's gate, beside that which it has through y.
        found, of_found: (Q, R, 3, K), written: what the query is projected to, and its gradient.
        weights, of_masks: (b rows, R, w K), written: what keys weigh, and the gradients of what is
            read of the masks.
        of_inside: (b rows, R, K), written: what each row of queries adds to the gradient of s.
        of_outside: (b rows, R), written: likewise, for the gates outside.
    """
    references, keys = inside.shape
    channels, w = grad.shape[1], queries.w
    number, dtype = w * keys, grad.dtype
    none = dtype.type(0)
    renormalized = softmax.share < 1
    for line in numba.prange(queries.images * queries.rows):
        first, last = line * w, (line + 1) * w
        left, above = np.empty(number, np.int32), np.empty(number, np.int32)
        across, down = np.empty(number, dtype), np.empty(number, dtype)
        pixel, four = np.empty(4 * number, np.int32), np.empty(4 * number, dtype)
        gates, slopes, read = np.ones(number, dtype), np.zeros(number, dtype), np.zeros(number, dtype)
        product, along_x, along_y = np.empty(number, dtype), np.empty(number, dtype), np.empty(number, dtype)
        mask_along_x, mask_along_y = np.zeros(number, dtype), np.zeros(number, dtype)
        of_x, of_y, of_switch = np.empty(number, dtype), np.empty(number, dtype), np.empty(number, dtype)
        shift, sums = log_sums[first:last].copy(), np.empty(w, dtype)
        parts, switches = np.empty((references, number), dtype), np.empty((references, number), dtype)
        multiply(pixels[first:last], scores, found[first:last].reshape(w, scores.shape[1]))
        _take_parts(found[first:last, :, 2], inside, softmax, keys, shift, True, parts, switches)
        for r in range(references):
            table, part, switch, beyond = tables[r, line // queries.rows], parts[r], switches[r], outside[r]
            weight, of_mask = weights[line, r], of_masks[line, r]
            _find(queries, line, found[first:last, r], keys, base, left, above, across, down)
            _four(queries, left, above, across, down, pixel, four)
            _multiply(grad[first:last], table, channels, keys, pixel, four)
            _interpolate(queries, four, left, above, across, down, product, along_x, along_y)
            if softmax.masks > 0:
                _take_masks(table, channels, keys, softmax.masks, pixel, four)
                _interpolate(queries, four, left, above, across, down, read, mask_along_x, mask_along_y)
                _gate(softmax, read, gates, slopes)
            _weigh(softmax, keys, part, switch, beyond, gates, sums, weight)
            of_outside[line, r] = none
            for q in range(w):
                total = totals[first + q]
                if not softmax.joint:
                    total = none
                    for i in range(q * keys, (q + 1) * keys):
                        total += product[i] * gates[i] * part[i] * switch[i]
                    of_outside[line, r] += total
                of_all, of_every = (total, softmax.share * total) if renormalized else (none, total)
                for i in range(q * keys, (q + 1) * keys):
                    of_switch[i] = of_every + of_all * gates[i]
                    of_mask[i] = of_all
            for i in range(number):
                of_x[i], of_y[i] = weight[i] * along_x[i], weight[i] * along_y[i]
                scaled = part[i] * beyond
                of_switch[i] = (product[i] * gates[i] - of_switch[i]) * scaled
                of_mask[i] = ((product[i] - of_mask[i]) * scaled * switch[i] + of_open) * slopes[i]
            if softmax.masks > 0:
                for i in range(number):
                    of_x[i] += of_mask[i] * mask_along_x[i]
                    of_y[i] += of_mask[i] * mask_along_y[i]
            within = of_inside[line, r]
            within[:] = none
            for q in range(w):
                into, at = of_found[first + q, r], q * keys
                for k in range(keys):
                    into[0, k] = of_x[at + k]
                    into[1, k] = of_y[at + k]
                    into[2, k] = of_switch[at + k] * switch[at + k]
                    within[k] += of_switch[at + k]


@jit(parallel=True)
def scatter(queries, masks, found, base, weights, of_masks, grad, of_tables):
    """Write the gradients of the tables of references: (R, b, h w, C + masks).

    Each is the work of one thread, so that sums are the same for any number of threads.

    Args:
        queries, base: see above.
        masks: of each pixel.
        found, weights, of_masks: as :func:`differentiate` leaves them.
        grad: dL/dy, (Q, C).
        of_tables: written; there may be fewer references than in the others.
    """
    channels, keys, w = grad.shape[1], found.shape[3], queries.w
    number, dtype = w * keys, grad.dtype
    step, width = 1 if masks > 1 else 0, channels + masks
    for task in numba.prange(of_tables.shape[0] * queries.images):
        r, image = task // queries.images, task % queries.images
        table = of_tables[r, image]
        flat = table.reshape(-1)
        flat[:] = 0
        left, above = np.empty(number, np.int32), np.empty(number, np.int32)
        across, down = np.empty(number, dtype), np.empty(number, dtype)
        pixel, share = np.empty(4 * number, np.int32), np.empty(4 * number, dtype)
        begin = np.empty(w + 1, np.int32)
        for line in range(image * queries.rows, (image + 1) * queries.rows):
            first, last = line * w, (line + 1) * w
            _find(queries, line, found[first:last, r], keys, base, left, above, across, down)
            _four(queries, left, above, across, down, pixel, share)
            if masks > 0:
                of_mask = of_masks[line, r]
                for q in range(w):
                    for k in range(keys):
                        i, at = q * keys + k, channels + k * step
                        for entry in range(4 * i, 4 * i + 4):
                            flat[_place(pixel[entry], width, at)] += of_mask[i] * share[entry]
            _list(keys, pixel, share, weights[line, r], begin)
            for q in range(w):
                add_to_rows(table, pixel, share, begin[q], begin[q + 1], grad[first + q])
