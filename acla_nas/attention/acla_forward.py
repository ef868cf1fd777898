"""The loops of ACLA on a CPU, forward: what is read at the keys, summed, and projected.

For what arrays hold see :mod:`acla_nas.attention.acla_blocks`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from acla_nas.attention.acla_blocks import (
    STRIP,
    add_pixels,
    block_at,
    cell_of,
    clear_edges,
    count_tasks,
    lay_out,
    most_of_block,
    pixels_at,
    reference_at,
    width_of,
)
from acla_nas.attention.acla_keys import (
    WINDOW,
    Softmax,
    find_offsets,
    find_places,
    owners_of,
    repeat,
    room_of_window,
    scale_shares,
    share_among_four,
    take_parts,
    weigh_keys,
)
from acla_nas.ops.addresses import matrix_at
from acla_nas.ops.jit import jit
from acla_nas.ops.products import multiply
from acla_nas.ops.rows import add_rows
from acla_nas.ops.squares import take_squares
from acla_nas.ops.transposition import add_transposed, transpose
from acla_nas.ops.vectors import copy_four, copy_rows
from acla_nas.ops.windows import add_shares, add_window, frame

_GROUP = 8  # blocks that read one reference after the other, of which a part stays in a near cache (measured)


@jit()
def _largest(numbers):
    """Return the largest of integers (n,); in one thread, as are the next: there are few of them."""
    largest = numbers[0]
    for number in numbers:
        largest = max(largest, number)
    return largest


@jit()
def _total(numbers):
    """Return the sum of integers (n,)."""
    total = 0
    for number in numbers:
        total += number
    return total


@jit()
def _ones(n, like):
    """Return n ones of the dtype of another array."""
    return np.ones(n, like.dtype)


@jit()
def _read_masks(queries, masks, keys, cell, share, four, read):
    """Write what the masks of a reference, (M, P), have at the keys of a block, and at the pixels around."""
    take_squares(masks, width_of(queries), keys, cell, four)
    for i in range(len(read)):
        upper = four[4 * i] * share[4 * i] + four[4 * i + 1] * share[4 * i + 1]
        read[i] = upper + four[4 * i + 2] * share[4 * i + 2] + four[4 * i + 3] * share[4 * i + 3]


@jit()
def _list(keys, cell, share, weight, begin):
    """List the keys of each query of a block that weigh something, in place.

    Args:
        keys: K.
        cell, share: (n K,) and (4 n K,), of all keys; overwritten by those of keys whose weight is not 0.
        weight: (n K,).
        begin: (n + 1,), written: where each query's keys begin, and the last's end.
    """
    at, none, kept = 0, weight.dtype.type(0), 0
    for i in range(len(weight)):
        kept += weight[i] != none
    for q in range(len(begin)):
        begin[q] = q * keys
    if kept == len(weight):
        return
    for q in range(len(begin) - 1):
        begin[q] = at
        for i in range(q * keys, (q + 1) * keys):  # without a branch, which could not be foreseen
            cell[at] = cell[i]
            copy_four(share, 4 * i, 4 * at)
            at += weight[i] != none
    begin[-1] = at


@jit()
def _count_closed(masks, bias):
    """Return how many masks, (n, M), would close a key, biased."""
    zero, one = np.int32(0), np.int32(1)
    limit, count, flat = -bias, zero, masks.reshape(-1)
    for i in range(len(flat)):
        count += zero if flat[i] > limit else one
    return count


@jit()
def _count_groups(queries):
    """Return in how many groups blocks are worked on, which are of one image each."""
    return queries.images * ((count_tasks(queries) // queries.images + _GROUP - 1) // _GROUP)


@jit()
def _group(queries, group):
    """Return of the n-th group its first block and the one behind its last, and likewise of its queries."""
    in_image, groups = count_tasks(queries) // queries.images, _count_groups(queries) // queries.images
    first = group // groups * in_image
    start, stop = first + group % groups * _GROUP, first + min((group % groups + 1) * _GROUP, in_image)
    return start, stop, block_at(queries, start)[2], block_at(queries, stop - 1)[3]


@jit()
def _sum_group(
    queries, softmax, group, pixels, scores, owners, repeated, outside, tables, masks, into, log_sums
):  # fmt: skip
    """Write y of Eq. 6 for a group of blocks of queries, and return how many keys are open.

    Args:
        queries, softmax, scores, tables, masks: see above.
        group: which.
        pixels: of the query, (n, C).
        owners, repeated: see :func:`owners_of` and :func:`repeat`.
        outside: (R,), gates of references outside of the softmax.
        into: (n, C), written.
        log_sums: (n,), written: logarithms of what a joint softmax divides by.
    """
    references, keys, dtype, count = len(outside), scores.shape[3], into.dtype, 0
    start, stop, origin, _ = _group(queries, group)
    of_query = references * keys
    parts, sums = np.empty(len(into) * of_query, dtype), np.zeros(len(into), dtype)
    room = _room_of_block(most_of_block(queries), keys, into)
    for block in range(start, stop):
        line, begin, first, last = block_at(queries, block)
        i, j = first - origin, last - origin
        of_block = parts[i * of_query : j * of_query].reshape(references, (j - i) * keys)
        take_parts(pixels[i:j], scores[:, 2], repeated[2:], softmax, keys, log_sums[i:j], False, of_block)
    into[:] = dtype.type(0)
    for r in range(references):
        for block in range(start, stop):
            line, begin, first, last = block_at(queries, block)
            i, j = first - origin, last - origin
            of_block = parts[i * of_query : j * of_query].reshape(references, (j - i) * keys)
            count += _sum_block(
                queries, softmax, line, begin, pixels[i:j], scores[r], owners, repeated, r, outside[r],
                tables[r], masks[r], of_block[r], room, into[i:j], sums[i:j],
            )  # fmt: skip
    if softmax.joint:
        for q in range(len(into)):
            log_sums[q] += np.log(sums[q])
            for c in range(into.shape[1]):
                into[q, c] /= sums[q]
    return count


class _Room(NamedTuple):
    """Memory for what :func:`_sum_block` finds on its way: of n queries or more, arbitrary between two calls.

    Attributes:
        offsets: (2, n K).
        places: (4, n K) int32.
        beyond: (2, n K).
        fours: (2, 4 n K).
        factors: (2, n K).
        of_queries: (4, n + 1) int32.
        shares: (n, room for a window).
    """

    offsets: Any
    places: Any
    beyond: Any
    fours: Any
    factors: Any
    of_queries: Any
    shares: Any


@jit()
def _room_of_block(n, keys, like):
    """Return the memory for a block of n queries, for numbers of the dtype of another array."""
    number, dtype = n * keys, like.dtype
    return _Room(
        np.empty((2, number), dtype),
        np.empty((4, number), np.int32),
        np.empty((2, number), dtype),
        np.empty((2, 4 * number), dtype),
        np.empty((2, number), dtype),
        np.empty((4, n + 1), np.int32),
        np.empty((n, room_of_window(keys)), dtype),
    )


@jit()
def _sum_block(
    queries, softmax, line, first, pixels, scores, owners, repeated, r, beyond, table, masks, part, room,
    into, sums,
):  # fmt: skip
    """Add to y of Eq. 6 what one reference gives for a block of queries, and return how many keys are open.

    Args:
        queries, softmax, table, masks: see above, of the reference.
        line, first: the row of the block, and its first column.
        pixels: of the query, (n, C).
        scores: of the reference, (3, C, K).
        owners, repeated: see :func:`owners_of` and :func:`repeat`.
        r: which reference it is.
        beyond: its gate outside of the softmax.
        part: (n K,), exponentials of its logits.
        room: overwritten.
        into: (n, C), added to.
        sums: (n,), see :func:`weigh_keys`.
    """
    n, dtype, keys, width = len(into), into.dtype, scores.shape[2], width_of(queries)
    number, none, one = n * keys, dtype.type(0), dtype.type(1)
    column, row, cell = room.places[0, :number], room.places[1, :number], room.places[2, :number]
    place, across, down = room.places[3, :number], room.beyond[0, :number], room.beyond[1, :number]
    share, four = room.fours[0, : 4 * number], room.fours[1, : 4 * number]
    gates, weight = room.factors[0, :number], room.factors[1, :number]
    corner, columns, size = room.of_queries[0, :n], room.of_queries[1, :n], room.of_queries[2, :n]
    begin, shares = room.of_queries[3, : n + 1], room.shares[:n]
    find_offsets(pixels, scores, room.offsets)
    find_places(
        queries, line, first, owners, repeated, room.offsets[0], room.offsets[1], column, row, cell, across,
        down,
    )  # fmt: skip
    share_among_four(across, down, share)
    gates[:] = one
    if softmax.masks > 0:
        _read_masks(queries, masks, keys, cell, share, four, gates)
        for i in range(number):
            gates[i] = one if gates[i] + softmax.bias > none else none
    opened = weigh_keys(softmax, keys, part, repeated[2 + r], beyond, gates, sums, weight)
    scale_shares(share, weight)
    frame(column, row, keys, WINDOW * opened // n, width, room_of_window(keys), corner, columns, size, place)
    framed = 0
    for q in range(n):
        framed += size[q] > 0
    if framed > 0:
        shares[:] = none
        add_shares(shares.reshape(-1), keys, columns, place, share)
        for q in range(n):
            if size[q] > 0:
                add_window(table, width, corner[q], columns[q], size[q], shares[q], into[q])
    if framed < n:
        _list(keys, cell, share, weight, begin)
        for q in range(n):
            if size[q] == 0:
                add_rows(table, width, cell, share, begin[q], begin[q + 1], into[q])
    return opened


@jit(parallel=True)
def sum_keys(
    queries, strips, softmax, references, query, is_turned, scores, base, inside, outside, out, tables, masks,
    y, log_sums, result,
):  # fmt: skip
    """Write y of Eq. 6, weighted sums of what is read at all keys, and H y; return how many keys are open.

    Args:
        queries, softmax, scores, base: see above.
        strips: see :func:`strips_of`.
        references: (R, 5) int64, see :class:`Reference`.
        query: the address of it, (b, C, P).
        is_turned: whether that and the result are (b, P, C) instead.
        inside, outside: (R, K) and (R,), gates of keys and references, within the softmax and outside of it.
        out: H, (C, C).
        tables, masks: (R, P, C) and (R, M, P), overwritten.
        y: (Q, C), written.
        log_sums: (Q,), written: logarithms of what a joint softmax divides by.
        result: b C P numbers, written.
    """
    owners, repeated = owners_of(most_of_block(queries), len(base)), repeat(queries, base, inside)
    count, size, channels = len(tables), queries.h * queries.w, tables.shape[2]
    opened, in_image = np.empty(_count_groups(queries), np.int64), count_tasks(strips)
    per_image = len(opened) // queries.images
    to_tables = np.empty((count, _largest(references[:, 0]), channels), y.dtype)
    for r in numba.prange(count):
        reference = reference_at(references, r)
        transpose(matrix_at(reference.projection, channels, reference.channels, y), to_tables[r])
        clear_edges(queries, tables[r])
        masks[r] = 0
    turned = np.empty((channels, channels), y.dtype)
    transpose(out, turned)
    for image in range(queries.images):
        of_image = result[image * size * channels : (image + 1) * size * channels]
        for index in numba.prange(count * in_image):
            task = np.int64(index)
            r = task // in_image
            reference = reference_at(references, r)
            lay_out(strips, task % in_image, reference, image, to_tables[r], tables[r], masks[r])
        for index in numba.prange(image * per_image, (image + 1) * per_image):
            group = np.int64(index)
            _, _, first, last = _group(queries, group)
            at = first - image * size
            of = pixels_at(query, is_turned, channels, size, image, at, at + last - first, y)
            opened[group] = _sum_group(
                queries, softmax, group, of, scores, owners, repeated, outside, tables, masks, y[first:last],
                log_sums[first:last],
            )  # fmt: skip
            projected = np.empty((last - first, channels), y.dtype)
            multiply(y[first:last], turned, projected)
            _write(projected, is_turned, at, of_image)
    return _total(opened)


@jit()
def _write(rows, is_turned, first, result):
    """Write pixels of an image, (n, C), into the result for it, (P, C) if it is turned, or else (C, P)."""
    count, channels = rows.shape
    pixels = len(result) // channels
    if is_turned:
        copy_rows(rows, result.reshape(pixels, channels)[first : first + count])
    else:
        transpose(rows, result.reshape(channels, pixels)[:, first : first + count])


@jit()
def _write_sum(rows, query, is_turned, first, result):
    """Write the sum of pixels and those of the query, (n, C) both, as :func:`_write` does.

    Args:
        rows, query: overwritten, but for a query that lies in memory as it is.
        is_turned, first, result: see :func:`_write`.
    """
    count, channels = rows.shape
    if is_turned:
        add_pixels(query, rows)
        _write(rows, is_turned, first, result)
    else:
        add_transposed(rows, query.T)
        copy_rows(query.T, result.reshape(channels, len(result) // channels)[:, first : first + count])


@jit(parallel=True)
def infer(
    queries, strips, softmax, channels, features, is_turned, weights, out, scale, base, is_added, tables,
    masks, y,
):  # fmt: skip
    """Write H y, or x + H y, all that a module computes without gradients; return how many keys are open.

    H and G are linear: one matrix H G does for both. Tensors are given by their addresses.

    Args:
        queries, softmax, base: see above, of whole images.
        strips: see :func:`strips_of`.
        channels: (1 + R,), of the query and of the references.
        features: (1 + R,), these: (b, C, P).
        is_turned: (1 + R,), which of them are (b, P, C) instead; the result is as the query is.
        weights: (R, 4), W_off (2 K, C), W_att (K, C), M (masks, C_l) and G (C, C_l) of each reference.
        out: H, (C, C).
        scale: of M.
        is_added: whether to add the query, x.
        tables, masks: (R, P, C) and (R, M, P), overwritten.
        y: b C h w numbers, written.
    """
    references, size, keys, dtype = len(weights), len(out), len(base), out.dtype
    pixels, gates = queries.h * queries.w, masks.shape[1]
    most = _largest(channels[1:])
    turned, scores = np.empty((size, size), dtype), np.empty((references, 3, size, keys), dtype)
    values, to_masks = np.empty((references, most, size), dtype), np.empty((references, most, gates), dtype)
    transpose(out, turned)
    parts, in_image = (most + STRIP - 1) // STRIP, count_tasks(strips)
    for index in numba.prange(references * parts):
        task = np.int64(index)
        r, first = task // parts, task % parts * STRIP
        last = min(first + STRIP, channels[r + 1])
        if first < last:
            value = matrix_at(weights[r, 3], size, channels[r + 1], out)
            multiply(value[:, first:last].T, turned, values[r, first:last])
            mask = matrix_at(weights[r, 2], gates, channels[r + 1], out)
            for i in range(first, last):
                for k in range(gates):
                    to_masks[r, i, k] = scale * mask[k, i]
        if first == 0:
            clear_edges(queries, tables[r])
            masks[r] = 0
            offset = matrix_at(weights[r, 0], 2 * keys, size, out)
            transpose(offset[0::2], scores[r, 0])
            transpose(offset[1::2], scores[r, 1])
            transpose(matrix_at(weights[r, 1], keys, size, out), scores[r, 2])
    owners, outside = owners_of(most_of_block(queries), keys), _ones(references, out)
    repeated = repeat(queries, base, _ones(references * keys, out).reshape(references, keys))
    closed, in_all = np.empty(references * in_image, np.int32), 0
    opened = np.empty(_count_groups(queries) // queries.images, np.int64)
    for image in range(queries.images):
        for index in numba.prange(references * in_image):
            task = np.int64(index)
            r = task // in_image
            line, begin, first, last = block_at(strips, task % in_image)
            of = pixels_at(
                features[r + 1], is_turned[r + 1], channels[r + 1], pixels, image, first, last, out
            )
            at, found_masks = cell_of(strips, line, begin), np.empty((last - first, gates), dtype)
            end = at + last - first
            multiply(of, values[r, : channels[r + 1]], tables[r, at:end])
            multiply(of, to_masks[r, : channels[r + 1]], found_masks)
            transpose(found_masks, masks[r, :, at:end])
            closed[task] = _count_closed(found_masks, softmax.bias)
        # What is read lies between the masks and 0: where all of these are open, so is every key.
        counted = softmax.masks if softmax.bias <= 0 or _largest(closed) > 0 else 0
        found = Softmax(softmax.joint, softmax.share, counted, softmax.bias, softmax.temperature)
        result = y[image * size * pixels : (image + 1) * size * pixels]
        for index in numba.prange(len(opened)):
            group = np.int64(index)
            _, _, first, last = _group(queries, group)
            of = pixels_at(features[0], is_turned[0], size, pixels, image, first, last, out)
            into, log_sums = np.empty((last - first, size), dtype), np.empty(last - first, dtype)
            opened[group] = _sum_group(
                queries, found, group, of, scores, owners, repeated, outside, tables, masks, into, log_sums
            )  # fmt: skip
            if is_added:
                _write_sum(into, of, is_turned[0], first, result)
            else:
                _write(into, is_turned[0], first, result)
        in_all += _total(opened)
    return in_all
