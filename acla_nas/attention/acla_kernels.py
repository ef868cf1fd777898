"""The loops of ACLA on a CPU: where keys lie, what they weigh, what is read there, and the gradients of it.

Q query pixels, those of b images, have K keys in each of R references, maps of the query's size.
``pixels``, (Q, C), and ``scores``, (R, 3, C, K), have the query and what projects it to its keys: for each
reference to the offsets beyond ``base``, (K, 2), along x and along y, and to the logits. ``tables``,
(R, P, C), have a row for each pixel of a reference in one image, G x, and ``masks``, (R, M, P), a plane for
each of its masks, M x: one or K, none where there are no masks. Both have zeros around the map, so that what
is outside of it is read like the rest: their rows of pixels are ``_width`` apart. Keys of n neighbouring
queries of a row are worked on together, one simple loop after the other, which compilers make fast; what
belongs to them stays in a near cache. The indices of parallel loops, which Numba may count without a sign,
are turned into the integers that all else is compiled for: it would be compiled a second time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from acla_nas.ops.addresses import matrix_at
from acla_nas.ops.jit import jit
from acla_nas.ops.products import add_product, multiply
from acla_nas.ops.rows import add_rows, add_to_cells, multiply_rows
from acla_nas.ops.squares import add_to_squares, take_squares
from acla_nas.ops.transposition import add_transposed, transpose
from acla_nas.ops.vectors import copy_four, copy_rows, power_of_two, prefetch
from acla_nas.ops.windows import add_shares, add_window, frame, multiply_window, room_of, take_products

_STRIP = 48  # pixels projected together: they stay in the nearest cache
FORWARD, BACKWARD = 24, 48  # queries worked on together: for all references, and for one (measured)
_GROUP = 8  # blocks that read one reference after the other, of which a part stays in a near cache (measured)
_SORTED = 192  # queries whose keys are sorted together: many lie between the same pixels (measured)
_FAR = 1 << 24  # pixels; places farther off need not be told apart
_EDGE = 2  # pixels of zeros around a map: what is farther off is as if it were there
_WINDOW = 3  # pixels of a window for each of its keys, at most: to read four around each is slower (measured)
_LOWEST, _HIGHEST = -80.0, 20.0  # exponents are cut off here; only what is gated off could have a higher one
_LOG2_E, _LN_2 = 1.4426950408889634, 0.6931471805599453


class Queries(NamedTuple):
    """The query pixels, of maps that are as large as those that they read.

    Attributes:
        images: b.
        h, w: rows of an image, and pixels in a row.
        together: how many of a row are worked on at the same time, at most.
    """

    images: int
    h: int
    w: int
    together: int


def strips_of(queries: Queries) -> Queries:
    """Return the pixels of an image, as many together as are projected together."""
    return queries._replace(images=1, together=_STRIP)


def size_of_plane(queries: Queries) -> int:
    """Return how many pixels a map has with those around, P; products with windows read a row more."""
    return (queries.h + 2 * _EDGE + 1) * (queries.w + _EDGE) + _EDGE


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


class Reference(NamedTuple):
    """Where the arrays of a reference are, 0 those that are not there.

    Attributes:
        channels: C_l.
        feature: (b, C_l, h w).
        projection: G and M below it, (C + M, C_l).
        of_feature: the gradient of the feature.
        is_added: whether that is added to, not written.
    """

    channels: int
    feature: int
    projection: int
    of_feature: int
    is_added: int


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


@jit()
def _reference(references, r):
    """Return one of the references, (R, 5)."""
    of = references[r]
    return Reference(of[0], of[1], of[2], of[3], of[4])


@jit()
def _owners(queries, keys):
    """Return of each key of so many queries, which have as many each, whose it is: (n K,), int32."""
    owners = np.empty(queries * keys, np.int32)
    for i in range(len(owners)):
        owners[i] = i // keys
    return owners


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
def _repeat(queries, base, inside):
    """Return what is the same for all blocks, for as many queries as a block has at most.

    Returns:
        (2 + R, n K), where keys are at first, along x and along y, and gates within the softmax.
    """
    keys, n = len(base), most_of_block(queries)
    repeated = np.empty((2 + len(inside), n * keys), base.dtype)
    for q in range(n):
        for k in range(keys):
            repeated[0, q * keys + k], repeated[1, q * keys + k] = base[k, 0], base[k, 1]
            for r in range(len(inside)):
                repeated[2 + r, q * keys + k] = inside[r, k]
    return repeated


@jit()
def _blocks(queries):
    """Return in how many blocks of queries a row is worked on."""
    return (queries.w + queries.together - 1) // queries.together


@jit()
def most_of_block(queries):
    """Return how many queries a block has at most, n."""
    return (queries.w + _blocks(queries) - 1) // _blocks(queries)


@jit()
def count_tasks(queries):
    """Return how many blocks of queries there are in all."""
    return queries.images * queries.h * _blocks(queries)


@jit()
def _block(queries, task):
    """Return of the n-th block its row and its first column, its first query and the one behind its last."""
    blocks = _blocks(queries)
    line, part = task // blocks, task % blocks
    begin, end = part * queries.w // blocks, (part + 1) * queries.w // blocks
    return line, begin, line * queries.w + begin, line * queries.w + end


@jit()
def _width(queries):
    """Return how far apart rows of pixels are: what is right of one is left of the next."""
    return queries.w + _EDGE


@jit()
def _cell(queries, line, column):
    """Return which of P a pixel is; its row is counted from that of the first image."""
    return (line % queries.h + _EDGE) * _width(queries) + column + _EDGE


@jit()
def _clear_edges(queries, table):
    """Write the zeros around a map, (P, C)."""
    end = 0
    for line in range(queries.h):
        begin = _cell(queries, line, 0)
        table[end:begin] = 0
        end = begin + queries.w
    table[end:] = 0


@jit()
def _find(queries, line, first, owners, repeated, along_x, along_y, column, row, cell, across, down):
    """Write which pixel is at the upper left of the keys of a block, and how far beyond it they lie.

    Args:
        queries: that are worked on.
        line, first: the row of the block, and its first column.
        owners, repeated: see :func:`_owners` and :func:`_repeat`.
        along_x, along_y: (n K or more,), offsets beyond the base in a reference.
        column, row, cell: (n K,) int32, written: of the pixel, with those around the map counted.
        across, down: (n K,), written.
    """
    far, zero, edge, width = across.dtype.type(_FAR), np.int32(0), np.int32(_EDGE), np.int32(_width(queries))
    x, y = np.int32(first) + edge, np.int32(line % queries.h) + edge
    right, bottom = np.int32(queries.w) + edge, np.int32(queries.h) + edge
    for i in range(len(column)):
        at_x = min(max(along_x[i] + repeated[0, i], -far), far)
        at_y = min(max(along_y[i] + repeated[1, i], -far), far)
        whole_x, whole_y = np.floor(at_x), np.floor(at_y)
        across[i] = at_x - whole_x
        down[i] = at_y - whole_y
        column[i] = min(max(np.int32(x + owners[i] + np.int32(whole_x)), zero), right)
        row[i] = min(max(np.int32(y + np.int32(whole_y)), zero), bottom)
        cell[i] = np.int32(row[i] * width) + column[i]


@jit()
def _four(across, down, share):
    """Write the share of each of the four pixels around keys in what is read there: (4 n K,)."""
    whole = share.dtype.type(1)
    for i in range(len(across)):
        near, upper = whole - across[i], whole - down[i]
        share[4 * i] = upper * near
        share[4 * i + 1] = upper * across[i]
        share[4 * i + 2] = down[i] * near
        share[4 * i + 3] = down[i] * across[i]


@jit()
def _exponentiate(x):
    """Replace numbers (n,) by their exponentials, to rounding; what is not a number stays so."""
    dtype = x.dtype.type
    lowest, highest, half = dtype(_LOWEST), dtype(_HIGHEST), dtype(0.5)
    for i in range(len(x)):
        exponent = lowest if x[i] < lowest else highest if x[i] > highest else x[i]
        power = np.floor(exponent * dtype(_LOG2_E) + half)
        f = exponent - power * dtype(_LN_2)  # in -0.35 .. 0.35
        e = dtype(1 / 5040)
        if x.itemsize > 4:  # where the series needs 12 terms, not 7
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
    """Write the largest logit of each query that is not gated off: (n,), from logits and gates (S, n K)."""
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
def _take_parts(pixels, scores, gates, softmax, keys, shift, is_known, parts):
    """Write the exponentials of the logits of a block, (R, n K).

    Args:
        pixels: (n, C).
        scores: (R, C, K), what projects them to logits.
        gates: (R, n K or more), within the softmax.
        softmax, keys: as elsewhere.
        shift: (n,), what is subtracted from the logits of a joint softmax; written unless it is known.
        is_known: whether it is.
        parts: written.
    """
    n = len(pixels)
    for r in range(len(parts)):
        multiply(pixels, scores[r], parts[r].reshape(n, keys))
    if softmax.joint and not is_known:
        _shift(parts, gates, keys, shift)
    for r in range(len(parts)):
        part = parts[r]
        if not softmax.joint:
            _shift(parts[r : r + 1], gates[r : r + 1], keys, shift)
        for q in range(n):
            for k in range(keys):
                part[q * keys + k] -= shift[q]
        _exponentiate(part)


@jit()
def _offset(pixels, scores, offsets):
    """Write the offsets of a block in a reference beyond the base: (2, n K or more)."""
    n, keys = len(pixels), scores.shape[2]
    for axis in range(2):
        multiply(pixels, scores[axis], offsets[axis][: n * keys].reshape(n, keys))


@jit()
def _read_masks(queries, masks, keys, cell, share, four, read):
    """Write what the masks of a reference, (M, P), have at the keys of a block, and at the pixels around."""
    take_squares(masks, _width(queries), keys, cell, four)
    for i in range(len(read)):
        upper = four[4 * i] * share[4 * i] + four[4 * i + 1] * share[4 * i + 1]
        read[i] = upper + four[4 * i + 2] * share[4 * i + 2] + four[4 * i + 3] * share[4 * i + 3]


@jit()
def _weigh(softmax, keys, part, inside, outside, gates, sums, weight):
    """Write the weights of the keys of a block in one reference, and return how many are open.

    Args:
        softmax, keys: as elsewhere.
        part: (n K,), exponentials; where softmax is per reference, they are divided by their sum here.
        inside: (n K or more,), gates of keys and references within the softmax.
        outside: of the reference, beyond it.
        gates: (n K,), of keys, 0 or 1.
        sums: (n,), what is to be divided by where softmax is joint: added to.
        weight: (n K,), written.
    """
    none = part.dtype.type(0)
    count = none
    for i in range(len(part)):
        count += gates[i]
        weight[i] = part[i] * inside[i]
    of_query = (len(sums), keys)
    part_of, weight_of, gate_of = part.reshape(of_query), weight.reshape(of_query), gates.reshape(of_query)
    for q in range(len(sums)):
        every, kept = none, none
        for k in range(keys):
            every += weight_of[q, k]
            kept += weight_of[q, k] * gate_of[q, k]
        if softmax.share < 1:
            every = kept + softmax.share * every
        if softmax.joint:
            sums[q] += every
        else:
            for k in range(keys):
                part_of[q, k] /= every
                weight_of[q, k] /= every
    for i in range(len(part)):
        weight[i] *= gates[i] * outside
    return np.int64(count)


@jit()
def _scale(share, weight):
    """Multiply the shares of the four pixels around keys, (4 n K,), with the weights of these."""
    for i in range(len(weight)):
        share[4 * i] *= weight[i]
        share[4 * i + 1] *= weight[i]
        share[4 * i + 2] *= weight[i]
        share[4 * i + 3] *= weight[i]


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
def _room(keys):
    """Return for how many numbers of a window there is room."""
    return room_of(_WINDOW * keys)


@jit()
def count_groups(queries):
    """Return in how many groups blocks are worked on, which are of one image each."""
    return queries.images * ((count_tasks(queries) // queries.images + _GROUP - 1) // _GROUP)


@jit()
def _group(queries, group):
    """Return of the n-th group its first block and the one behind its last, and likewise of its queries."""
    in_image, groups = count_tasks(queries) // queries.images, count_groups(queries) // queries.images
    first = group // groups * in_image
    start, stop = first + group % groups * _GROUP, first + min((group % groups + 1) * _GROUP, in_image)
    return start, stop, _block(queries, start)[2], _block(queries, stop - 1)[3]


@jit()
def _sum_group(
    queries, softmax, group, pixels, scores, owners, repeated, outside, tables, masks, into, log_sums
):  # fmt: skip
    """Write y of Eq. 6 for a group of blocks of queries, and return how many keys are open.

    Args:
        queries, softmax, scores, tables, masks: see above.
        group: which.
        pixels: of the query, (n, C).
        owners, repeated: see :func:`_owners` and :func:`_repeat`.
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
        line, begin, first, last = _block(queries, block)
        i, j = first - origin, last - origin
        of_block = parts[i * of_query : j * of_query].reshape(references, (j - i) * keys)
        _take_parts(pixels[i:j], scores[:, 2], repeated[2:], softmax, keys, log_sums[i:j], False, of_block)
    into[:] = dtype.type(0)
    for r in range(references):
        for block in range(start, stop):
            line, begin, first, last = _block(queries, block)
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
        np.empty((n, _room(keys)), dtype),
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
        owners, repeated: see :func:`_owners` and :func:`_repeat`.
        r: which reference it is.
        beyond: its gate outside of the softmax.
        part: (n K,), exponentials of its logits.
        room: overwritten.
        into: (n, C), added to.
        sums: (n,), see :func:`_weigh`.
    """
    n, dtype, keys, width = len(into), into.dtype, scores.shape[2], _width(queries)
    number, none, one = n * keys, dtype.type(0), dtype.type(1)
    column, row, cell = room.places[0, :number], room.places[1, :number], room.places[2, :number]
    place, across, down = room.places[3, :number], room.beyond[0, :number], room.beyond[1, :number]
    share, four = room.fours[0, : 4 * number], room.fours[1, : 4 * number]
    gates, weight = room.factors[0, :number], room.factors[1, :number]
    corner, columns, size = room.of_queries[0, :n], room.of_queries[1, :n], room.of_queries[2, :n]
    begin, shares = room.of_queries[3, : n + 1], room.shares[:n]
    _offset(pixels, scores, room.offsets)
    _find(
        queries, line, first, owners, repeated, room.offsets[0], room.offsets[1], column, row, cell, across,
        down,
    )  # fmt: skip
    _four(across, down, share)
    gates[:] = one
    if softmax.masks > 0:
        _read_masks(queries, masks, keys, cell, share, four, gates)
        for i in range(number):
            gates[i] = one if gates[i] + softmax.bias > none else none
    opened = _weigh(softmax, keys, part, repeated[2 + r], beyond, gates, sums, weight)
    _scale(share, weight)
    frame(column, row, keys, _WINDOW * opened // n, width, _room(keys), corner, columns, size, place)
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


@jit()
def _add(more, into):
    """Add numbers (n, C) to others."""
    for p in range(len(into)):
        for c in range(into.shape[1]):
            into[p, c] += more[p, c]


@jit(parallel=True)
def turn_to_features(rows, features):
    """Write the sum of rows (parts, b, P, C) as features: (b, C, P)."""
    parts, images, pixels, _ = rows.shape
    strips = (pixels + _STRIP - 1) // _STRIP
    for index in numba.prange(images * strips):
        task = np.int64(index)
        image, first = task // strips, task % strips * _STRIP
        last = min(first + _STRIP, pixels)
        total = rows[0, image, first:last]
        for part in range(1, parts):
            _add(rows[part, image, first:last], total)
        transpose(total, features[image, :, first:last])


@jit()
def _image(address, image, channels, pixels, like):
    """Return an image of features (b, C, P), which begin at an address: (C, P)."""
    return matrix_at(address + image * channels * pixels * like.itemsize, channels, pixels, like)


@jit()
def _part(address, is_turned, channels, pixels, image, first, last, like):
    """Return pixels first .. last - 1 of an image, (last - first, C), of features (b, C, P) or (b, P, C).

    Channels that are far apart are brought together: in a cache they would be in each other's way.
    """
    if is_turned:
        return _image(address, image, pixels, channels, like)[first:last, 0:channels]
    together = np.empty((channels, last - first), like.dtype)
    copy_rows(_image(address, image, channels, pixels, like)[:, first:last], together)
    return together[:, 0 : last - first].T


@jit()
def _lay_out(strips, task, reference, image, to_table, table, masks):
    """Write a strip of the table of a reference of an image, (P, C), and of its masks, (M, P).

    Args:
        strips, task: see :func:`strips_of`, and which.
        reference, image: which.
        to_table: (largest C_l, C), what a pixel is multiplied with.
        table, masks: written.
    """
    line, begin, first, last = _block(strips, task)
    channels, at = table.shape[1], _cell(strips, line, begin)
    end = at + last - first
    of = _part(reference.feature, False, reference.channels, strips.h * strips.w, image, first, last, table)
    multiply(of, to_table[: reference.channels], table[at:end])
    projection = matrix_at(reference.projection, channels + len(masks), reference.channels, table)
    multiply(projection[channels:], of.T, masks[:, at:end])


@jit(parallel=True)
def sum_keys(
    queries, strips, softmax, references, query, is_turned, scores, base, inside, outside, out, tables, masks,
    y, log_sums, opened, result,
):  # fmt: skip
    """Write y of Eq. 6, the sums of what is read at all keys, weighted, and H y.

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
        opened: (groups,) int64, written: open keys of each group of blocks.
        result: b C P numbers, written.
    """
    owners, repeated = _owners(most_of_block(queries), len(base)), _repeat(queries, base, inside)
    count, size, channels = len(tables), queries.h * queries.w, tables.shape[2]
    per_image, in_image = len(opened) // queries.images, count_tasks(strips)
    to_tables = np.empty((count, _largest(references[:, 0]), channels), y.dtype)
    for r in numba.prange(count):
        reference = _reference(references, r)
        transpose(matrix_at(reference.projection, channels, reference.channels, y), to_tables[r])
        _clear_edges(queries, tables[r])
        masks[r] = 0
    turned = np.empty((channels, channels), y.dtype)
    transpose(out, turned)
    for image in range(queries.images):
        of_image = result[image * size * channels : (image + 1) * size * channels]
        for index in numba.prange(count * in_image):
            task = np.int64(index)
            r = task // in_image
            reference = _reference(references, r)
            _lay_out(strips, task % in_image, reference, image, to_tables[r], tables[r], masks[r])
        for index in numba.prange(image * per_image, (image + 1) * per_image):
            group = np.int64(index)
            _, _, first, last = _group(queries, group)
            at = first - image * size
            of = _part(query, is_turned, channels, size, image, at, at + last - first, y)
            opened[group] = _sum_group(
                queries, softmax, group, of, scores, owners, repeated, outside, tables, masks, y[first:last],
                log_sums[first:last],
            )  # fmt: skip
            projected = np.empty((last - first, channels), y.dtype)
            multiply(y[first:last], turned, projected)
            _write(projected, is_turned, at, of_image)


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
        _add(query, rows)
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
    parts, in_image = (most + _STRIP - 1) // _STRIP, count_tasks(strips)
    for index in numba.prange(references * parts):
        task = np.int64(index)
        r, first = task // parts, task % parts * _STRIP
        last = min(first + _STRIP, channels[r + 1])
        if first < last:
            value = matrix_at(weights[r, 3], size, channels[r + 1], out)
            multiply(value[:, first:last].T, turned, values[r, first:last])
            mask = matrix_at(weights[r, 2], gates, channels[r + 1], out)
            for i in range(first, last):
                for k in range(gates):
                    to_masks[r, i, k] = scale * mask[k, i]
        if first == 0:
            _clear_edges(queries, tables[r])
            masks[r] = 0
            offset = matrix_at(weights[r, 0], 2 * keys, size, out)
            transpose(offset[0::2], scores[r, 0])
            transpose(offset[1::2], scores[r, 1])
            transpose(matrix_at(weights[r, 1], keys, size, out), scores[r, 2])
    owners, outside = _owners(most_of_block(queries), keys), _ones(references, out)
    repeated = _repeat(queries, base, _ones(references * keys, out).reshape(references, keys))
    closed, in_all = np.empty(references * in_image, np.int32), 0
    opened = np.empty(count_groups(queries) // queries.images, np.int64)
    for image in range(queries.images):
        for index in numba.prange(references * in_image):
            task = np.int64(index)
            r = task // in_image
            line, begin, first, last = _block(strips, task % in_image)
            of = _part(features[r + 1], is_turned[r + 1], channels[r + 1], pixels, image, first, last, out)
            at, found_masks = _cell(strips, line, begin), np.empty((last - first, gates), dtype)
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
            of = _part(features[0], is_turned[0], size, pixels, image, first, last, out)
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
    _exponentiate(slopes)
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
    number, none, width = n * keys, dtype.type(0), _width(queries)
    renormalized = softmax.share < 1
    parts, offsets = np.empty((1, number), dtype), np.empty((2, number), dtype)
    shift, sums = log_sums.copy(), np.empty(n, dtype)
    column, row = np.empty(number, np.int32), np.empty(number, np.int32)
    corner, columns, size = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    place, products = np.empty(number, np.int32), np.empty((n, _room(keys)), dtype)
    across, down = np.empty(number, dtype), np.empty(number, dtype)
    four = np.empty(4 * number, dtype)
    gates, slopes, read = np.ones(number, dtype), np.zeros(number, dtype), np.zeros(number, dtype)
    product, slope_x, slope_y = np.empty(number, dtype), np.empty(number, dtype), np.empty(number, dtype)
    mask_slope_x, mask_slope_y = np.zeros(number, dtype), np.zeros(number, dtype)
    of_mask, of_switch = np.empty(number, dtype), np.empty(number, dtype)
    switch = repeated[2 + r]
    _take_parts(pixels, scores[2:], repeated[2 + r : 3 + r], softmax, keys, shift, True, parts)
    part = parts[0]
    _offset(pixels, scores, offsets)
    _find(queries, line, first, owners, repeated, offsets[0], offsets[1], column, row, cell, across, down)
    _four(across, down, share)
    frame(column, row, keys, _WINDOW * keys, width, _room(keys), corner, columns, size, place)
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
    _weigh(softmax, keys, part, switch, beyond, gates, sums, weight)
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
    _scale(share, weight)
    return of_outside


@jit()
def _add_to_table(width, keys, order, runs, owners, grad, of_table):
    """Add to the gradient of a table what the keys of some queries give.

    They are sorted by the pixels that they lie between: what several add to these is summed in registers.

    Args:
        width: of the table.
        keys: of the queries; their cells are overwritten.
        order, runs: (n K,) and (n K + 1,) int32 or more, overwritten.
        owners: of n queries or more, see :func:`_owners`.
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
    feature = _image(reference.feature, image, reference.channels, pixels, of_table)
    into = _image(reference.of_feature, image, reference.channels, pixels, of_table)
    rows, gates = np.empty((most, reference.channels), into.dtype), np.empty((most, masks), into.dtype)
    for task in range(count_tasks(strips)):
        line, begin, first, last = _block(strips, task)
        count, at, after = last - first, _cell(strips, line, begin), min(last + most, pixels)
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
    strips = (pixels + _STRIP - 1) // _STRIP
    for part in numba.prange(parts):
        for strip in range(part * images * strips // parts, (part + 1) * images * strips // parts):
            image, at = strip // strips, strip % strips * _STRIP
            end = min(at + _STRIP, pixels)
            of = _part(of_result, is_turned, channels, pixels, image, at, end, y)
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
        inside, outside, log_sums: as for :func:`sum_keys`, and as it leaves them.
        grad, totals: as :func:`differentiate_out` writes them.
        tables, masks, of_tables, of_masks: (threads, P, C) and (threads, M, P), overwritten.
        of_query: (parts, Q, C), written.
        of_scores: (chunks of images, R, 3 K, C), added to; without rows if not wanted.
        of_projections: (chunks, R, largest C_l, C + M), transposed, added to; without columns if not wanted.
        of_inside: (chunks, R, K), added to: the gradient of s.
        of_outside: (chunks, R), likewise, of the gates outside.
    """
    repeated = _repeat(queries, base, inside)
    parts, chunks, keys = len(of_query), len(of_scores), len(base)
    channels, most = grad.shape[1], most_of_block(queries)
    per_image = count_tasks(queries) // queries.images
    together = max(1, _SORTED // most)
    owners = _owners(together * most, keys)
    for thread in numba.prange(threads):
        found, scores = np.empty((most, 3 * keys), grad.dtype), np.empty((3, channels, keys), grad.dtype)
        number = together * most * keys
        every = Keys(
            np.empty(number, np.int32), np.empty(4 * number, grad.dtype), np.empty(number, grad.dtype)
        )
        order, runs = np.empty(number, np.int32), np.empty(number + 1, np.int32)
        table, of_table = tables[thread], of_tables[thread]
        mask, of_mask = masks[thread], of_masks[thread]
        _clear_edges(queries, table)
        mask[:] = 0
        for task in range(thread * parts * chunks // threads, (thread + 1) * parts * chunks // threads):
            part, chunk = task % parts, task // parts
            for r in range(part, len(references), parts):
                reference = _reference(references, r)
                to_table = np.empty((reference.channels, channels), grad.dtype)
                transpose(matrix_at(reference.projection, channels, reference.channels, grad), to_table)
                for i in range(3):
                    transpose(rows[r, i], scores[i])
                for image in range(chunk * queries.images // chunks, (chunk + 1) * queries.images // chunks):
                    for strip in range(count_tasks(strips)):
                        _lay_out(strips, strip, reference, image, to_table, table, mask)
                    if r < on:
                        of_table[:] = 0
                        of_mask[:] = 0
                    for start in range(image * per_image, (image + 1) * per_image, together):
                        stop = min(start + together, (image + 1) * per_image)
                        whole = _block(queries, start)[2]
                        for block in range(start, stop):
                            line, begin, first, last = _block(queries, block)
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
                                _width(queries), of, order, runs, owners, grad[whole:last], of_table
                            )
                    if r < on:
                        into = of_projections[chunk, r]
                        _project_gradients(strips, reference, image, of_table, of_mask, into)
