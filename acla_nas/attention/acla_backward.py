"""The loops of ACLA on a CPU, backward: the gradients of all that H y is made of.

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
    image_at,
    lay_out,
    most_of_block,
    pixels_at,
    reference_at,
    width_of,
)
from acla_nas.attention.acla_keys import (
    WINDOW,
    exponentiate,
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
from acla_nas.ops.products import add_product, multiply
from acla_nas.ops.rows import add_to_cells, multiply_rows
from acla_nas.ops.squares import add_to_squares, take_squares
from acla_nas.ops.transposition import add_transposed, transpose
from acla_nas.ops.vectors import copy_rows, prefetch
from acla_nas.ops.windows import frame, multiply_window, take_products

_SORTED = 192  # queries whose keys are sorted together: many lie between the same pixels (measured)


class Keys(NamedTuple):
    """The keys of n queries that follow each other: between which pixels they lie, and what they weigh.

    Attributes:
        cell: (n K,) int32, the first of the four pixels around each.
        share: (4 n K,), of each of these in what is read at the key, times the weight of it.
        weight: (n K,).
    """

    cell: Any
    share: Any
    weight: Any


@jit(parallel=True)
def turn_to_features(rows, features):
    """Write the sum of rows (parts, b, P, C) as features: (b, C, P)."""
    parts, images, pixels, _ = rows.shape
    strips = (pixels + STRIP - 1) // STRIP
    for index in numba.prange(images * strips):
        task = np.int64(index)
        image, first = task // strips, task % strips * STRIP
        last = min(first + STRIP, pixels)
        total = rows[0, image, first:last]
        for part in range(1, parts):
            add_pixels(rows[part, image, first:last], total)
        transpose(total, features[image, :, first:last])


@jit()
def _interpolate(four, across, down, read, along_x, along_y):
    """Write what is read at keys of what is at the four pixels around each, (4 n K,), and its slopes."""
    for i in range(len(read)):
        v0, v1, v2, v3 = four[4 * i], four[4 * i + 1], four[4 * i + 2], four[4 * i + 3]
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
    exponentiate(slopes, none)
    for i in range(len(read)):
        slopes[i] /= (one + slopes[i]) * (one + slopes[i]) * temperature


@jit()
def _differentiate_block(
    queries, softmax, line, first, pixels, scores, owners, repeated, r, beyond, table, masks, grad, log_sums,
    totals, of_open, is_on, of_found, of_masks, of_inside, into,
):  # fmt: skip
    """Do what :func:`differentiate` does for a block of queries and a reference; return dL/d(outside).

    But for the gradient of the table: :func:`_add_to_table` takes it from the keys.

    Args:
        queries, softmax, owners, repeated: as elsewhere.
        line, first: the row of the block, and its first column.
        pixels: of the query, (n, C).
        scores: of the reference, (3, C, K).
        r, beyond: which it is, and its gate outside of the softmax.
        table, masks: of the reference and the image, (P, C) and (M, P).
        grad, log_sums, totals: of the block, see :func:`differentiate`.
        of_open: likewise.
        is_on: whether more is wanted than the gradients of gates.
        of_found: (n, 3 K), written: the gradient of what the query is projected to.
        of_masks: as masks, added to.
        of_inside: (K,), added to.
        into: :class:`Keys`, written.
    """
    cell, share, weight = into
    n, dtype, keys = len(grad), grad.dtype, scores.shape[2]
    number, none, width = n * keys, dtype.type(0), width_of(queries)
    renormalized = softmax.share < 1
    parts, offsets = np.empty((1, number), dtype), np.empty((2, number), dtype)
    shift, sums = log_sums.copy(), np.empty(n, dtype)
    column, row = np.empty(number, np.int32), np.empty(number, np.int32)
    corner, columns, size = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    place, products = np.empty(number, np.int32), np.empty((n, room_of_window(keys)), dtype)
    across, down = np.empty(number, dtype), np.empty(number, dtype)
    four = np.empty(4 * number, dtype)
    gates, slopes, read = np.ones(number, dtype), np.zeros(number, dtype), np.zeros(number, dtype)
    product, slope_x, slope_y = np.empty(number, dtype), np.empty(number, dtype), np.empty(number, dtype)
    mask_slope_x, mask_slope_y = np.zeros(number, dtype), np.zeros(number, dtype)
    of_mask, of_switch = np.empty(number, dtype), np.empty(number, dtype)
    switch = repeated[2 + r]
    take_parts(pixels, scores[2:], repeated[2 + r : 3 + r], softmax, keys, shift, True, parts)
    part = parts[0]
    find_offsets(pixels, scores, offsets)
    find_places(
        queries, line, first, owners, repeated, offsets[0], offsets[1], column, row, cell, across, down
    )
    share_among_four(across, down, share)
    frame(column, row, keys, WINDOW * keys, width, room_of_window(keys), corner, columns, size, place)
    for q in range(n):
        if size[q] > 0:
            multiply_window(table, width, corner[q], columns[q], size[q], grad[q], products[q])
        else:
            multiply_rows(table, width, cell, grad[q], q * keys, (q + 1) * keys, four)
    take_products(products.reshape(-1), keys, columns, place, four)
    _interpolate(four, across, down, product, slope_x, slope_y)
    if softmax.masks > 0:
        take_squares(masks, width, keys, cell, four)
        _interpolate(four, across, down, read, mask_slope_x, mask_slope_y)
        _gate(softmax, read, gates, slopes)
    weigh_keys(softmax, keys, part, switch, beyond, gates, sums, weight)
    shape = (n, keys)
    product_of, gate_of = product.reshape(shape), gates.reshape(shape)
    of_switch_of, of_mask_of = of_switch.reshape(shape), of_mask.reshape(shape)
    part_of, switch_of = part.reshape(shape), switch[:number].reshape(shape)
    of_outside = none
    for q in range(n):
        total = totals[q]
        if not softmax.joint:
            total = none
            for k in range(keys):
                total += product_of[q, k] * gate_of[q, k] * part_of[q, k] * switch_of[q, k]
            of_outside += total
        of_all, of_every = (total, softmax.share * total) if renormalized else (none, total)
        for k in range(keys):
            of_switch_of[q, k] = of_every + of_all * gate_of[q, k]
            of_mask_of[q, k] = of_all
    for i in range(number):
        scaled = part[i] * beyond
        of_switch[i] = (product[i] * gates[i] - of_switch[i]) * scaled
        of_mask[i] = ((product[i] - of_mask[i]) * scaled * switch[i] + of_open) * slopes[i]
    for q in range(n):
        for k in range(keys):
            of_inside[k] += of_switch_of[q, k]
    if not is_on:
        return of_outside
    for i in range(number):
        slope_x[i] *= weight[i]
        slope_y[i] *= weight[i]
        of_switch[i] *= switch[i]
    if softmax.masks > 0:
        for i in range(number):
            slope_x[i] += of_mask[i] * mask_slope_x[i]
            slope_y[i] += of_mask[i] * mask_slope_y[i]
    copy_rows(slope_x.reshape(shape), of_found[:, :keys])
    copy_rows(slope_y.reshape(shape), of_found[:, keys : 2 * keys])
    copy_rows(of_switch_of, of_found[:, 2 * keys :])
    if softmax.masks > 0:
        add_to_squares(of_masks, width, keys, cell, share, of_mask)
    scale_shares(share, weight)
    return of_outside


@jit()
def _add_to_table(width, keys, order, runs, owners, grad, of_table):
    """Add to the gradient of a table what the keys of some queries give.

    They are sorted by the pixels that they lie between: what several add to these is summed in registers.

    Args:
        width: of the table.
        keys: of the queries; their cells are overwritten.
        order, runs: (n K,) and (n K + 1,) int32 or more, overwritten.
        owners: of n queries or more, see :func:`owners_of`.
        grad: of these, (n, C).
        of_table: (P, C), added to.
    """
    cell, weight, one, none = keys.cell, keys.weight, np.int32(1), grad.dtype.type(0)
    lowest, highest = cell[0], cell[0]
    for i in range(len(cell)):
        lowest, highest = min(lowest, cell[i]), max(highest, cell[i])
    cells = np.int32(highest - lowest + one)
    for i in range(len(cell)):  # those that weigh nothing come last, and are left out
        cell[i] = cell[i] - lowest if weight[i] != none else cells
    end, at = np.zeros(cells + 1, np.int32), np.int32(0)
    for i in range(len(cell)):
        end[np.uintp(cell[i])] += one
    for c in range(len(end)):
        count = end[c]
        end[c] = at
        at += count
    for i in range(len(cell)):
        c = np.uintp(cell[i])
        order[np.uintp(end[c])] = i
        end[c] += one
    count, last = 0, np.int32(0)
    runs[0] = last
    for c in range(cells):
        count += end[c] != last
        last = end[c]
        runs[np.uintp(count)] = last
    add_to_cells(of_table[lowest:], width, runs[: count + 1], order, owners, cell, keys.share, grad)


@jit()
def _keys_of(keys, each, first, last):
    """Return the keys of some of the queries, which have so many each."""
    i, j = first * each, last * each
    return Keys(keys.cell[i:j], keys.share[4 * i : 4 * j], keys.weight[i:j])


@jit()
def _project_gradients(strips, reference, image, of_table, of_masks, of_projection):
    """Write the gradient of a reference, or add it, and add that of its projection.

    Args:
        strips: see :func:`strips_of`.
        reference, image: which.
        of_table, of_masks: gradients of its table and masks, (P, C) and (M, P).
        of_projection: (largest C_l, C + M), that of it transposed: added to, where it has columns.
    """
    pixels, most = strips.h * strips.w, most_of_block(strips)
    channels, masks = of_table.shape[1], len(of_masks)
    projection = matrix_at(reference.projection, channels + masks, reference.channels, of_table)
    feature = image_at(reference.feature, image, reference.channels, pixels, of_table)
    into = image_at(reference.of_feature, image, reference.channels, pixels, of_table)
    rows, gates = np.empty((most, reference.channels), into.dtype), np.empty((most, masks), into.dtype)
    for task in range(count_tasks(strips)):
        line, begin, first, last = block_at(strips, task)
        count, at, after = last - first, cell_of(strips, line, begin), min(last + most, pixels)
        of_values, of_gates = of_table[at : at + count], of_masks[:, at : at + count]
        if reference.of_feature != 0:
            prefetch(into[:, last:after])
            multiply(of_values, projection[:channels], rows[:count])
            add_product(of_gates.T, projection[channels:], rows[:count])
            if reference.is_added:
                add_transposed(rows[:count], into[:, first:last])
            else:
                transpose(rows[:count], into[:, first:last])
        if of_projection.shape[1] > 0:
            prefetch(feature[:, last:after])
            transpose(of_gates, gates[:count])
            of = of_projection[: reference.channels]
            add_product(feature[:, first:last], of_values, of[:, :channels])
            add_product(feature[:, first:last], gates[:count], of[:, channels:])


@jit(parallel=True)
def differentiate_out(images, of_result, is_turned, out, y, grad, totals, of_out):
    """Write the gradients of y and H from those of H y.

    Args:
        images: b.
        of_result: the address of the latter, (b, C, P).
        is_turned: whether that is (b, P, C) instead.
        out: H, (C, C).
        y: (Q, C).
        grad: dL/dy, (Q, C), written.
        totals: <dL/dy, y>, (Q,), written.
        of_out: (parts, C, C), added to: summed they are dL/dH; without rows if not wanted.
    """
    parts, channels, pixels = len(of_out), y.shape[1], len(y) // images
    strips = (pixels + STRIP - 1) // STRIP
    for part in numba.prange(parts):
        for strip in range(part * images * strips // parts, (part + 1) * images * strips // parts):
            image, at = strip // strips, strip % strips * STRIP
            end = min(at + STRIP, pixels)
            of = pixels_at(of_result, is_turned, channels, pixels, image, at, end, y)
            first, last = image * pixels + at, image * pixels + end
            multiply(of, out, grad[first:last])
            if of_out.shape[1] > 0:
                add_product(of.T, y[first:last], of_out[part])
            for q in range(first, last):
                total = grad.dtype.type(0)
                for c in range(channels):
                    total += grad[q, c] * y[q, c]
                totals[q] = total


@jit(parallel=True)
def differentiate(
    threads, queries, strips, softmax, of_open, on, references, pixels, rows, base, inside, outside, grad,
    totals, log_sums, tables, masks, of_tables, of_masks, of_query, of_scores, of_projections, of_inside,
    of_outside,
):  # fmt: skip
    """Write the gradients of all that a module is made of but H, from those of y.

    With p the softmax, s the gates in it, m those of the keys, v the values, D = <dL/dy, v>, T = <dL/dy, y>:
    dL/da = s p (m D - T), dL/ds = p (m D - T), dL/dm = s p D. References do not depend on each other here, so
    that each is done with while its table, and the gradient of this, stay in a near cache: for an image at a
    time. What several images or references add to is summed in parts, which do not depend on the threads.

    Args:
        threads: that work at the same time.
        queries, softmax, base: see above.
        strips: see :func:`strips_of`.
        of_open: gradient of a key's gate, beside that which it has through y.
        on: references that are on, from the first; of others there are gradients of gates only.
        references: (R, 5) int64, see :class:`Reference`.
        pixels: (Q, C).
        rows: (R, 3, K, C), what projects them to their keys.
        inside, outside, log_sums: as for :func:`.acla_forward.sum_keys`, and as it leaves them.
        grad, totals: as :func:`differentiate_out` writes them.
        tables, masks, of_tables, of_masks: (threads, P, C) and (threads, M, P), overwritten.
        of_query: (parts, Q, C), written.
        of_scores: (chunks of images, R, 3 K, C), added to; without rows if not wanted.
        of_projections: (chunks, R, largest C_l, C + M), transposed, added to; without columns if not wanted.
        of_inside: (chunks, R, K), added to: the gradient of s.
        of_outside: (chunks, R), likewise, of the gates outside.
    """
    repeated = repeat(queries, base, inside)
    parts, chunks, keys = len(of_query), len(of_scores), len(base)
    channels, most = grad.shape[1], most_of_block(queries)
    per_image = count_tasks(queries) // queries.images
    together = max(1, _SORTED // most)
    owners = owners_of(together * most, keys)
    for thread in numba.prange(threads):
        found, scores = np.empty((most, 3 * keys), grad.dtype), np.empty((3, channels, keys), grad.dtype)
        number = together * most * keys
        every = Keys(
            np.empty(number, np.int32), np.empty(4 * number, grad.dtype), np.empty(number, grad.dtype)
        )
        order, runs = np.empty(number, np.int32), np.empty(number + 1, np.int32)
        table, of_table = tables[thread], of_tables[thread]
        mask, of_mask = masks[thread], of_masks[thread]
        clear_edges(queries, table)
        mask[:] = 0
        for task in range(thread * parts * chunks // threads, (thread + 1) * parts * chunks // threads):
            part, chunk = task % parts, task // parts
            for r in range(part, len(references), parts):
                reference = reference_at(references, r)
                to_table = np.empty((reference.channels, channels), grad.dtype)
                transpose(matrix_at(reference.projection, channels, reference.channels, grad), to_table)
                for i in range(3):
                    transpose(rows[r, i], scores[i])
                for image in range(chunk * queries.images // chunks, (chunk + 1) * queries.images // chunks):
                    for strip in range(count_tasks(strips)):
                        lay_out(strips, strip, reference, image, to_table, table, mask)
                    if r < on:
                        of_table[:] = 0
                        of_mask[:] = 0
                    for start in range(image * per_image, (image + 1) * per_image, together):
                        stop = min(start + together, (image + 1) * per_image)
                        whole = block_at(queries, start)[2]
                        for block in range(start, stop):
                            line, begin, first, last = block_at(queries, block)
                            of_found = found[: last - first]
                            of_outside[chunk, r] += _differentiate_block(
                                queries, softmax, line, begin, pixels[first:last], scores, owners, repeated,
                                r, outside[r], table, mask, grad[first:last], log_sums[first:last],
                                totals[first:last], of_open, r < on, of_found, of_mask,
                                of_inside[chunk, r],
                                _keys_of(every, keys, first - whole, last - whole),
                            )  # fmt: skip
                            if r == part:
                                of_query[part, first:last] = 0
                            if r < on:
                                add_product(
                                    of_found, rows[r].reshape(3 * keys, channels), of_query[part, first:last]
                                )
                                if of_scores.shape[2] > 0:
                                    add_product(of_found.T, pixels[first:last], of_scores[chunk, r])
                        if r < on:
                            of = _keys_of(every, keys, 0, last - whole)
                            _add_to_table(
                                width_of(queries), of, order, runs, owners, grad[whole:last], of_table
                            )
                    if r < on:
                        into = of_projections[chunk, r]
                        _project_gradients(strips, reference, image, of_table, of_mask, into)
