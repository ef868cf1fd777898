"""The keys of a block of queries on a CPU: between which pixels they lie, and what they weigh.

For what arrays hold see :mod:`acla_nas.attention.acla_blocks`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from acla_nas.attention.acla_blocks import EDGE, most_of_block, width_of
from acla_nas.attention.forms import HIGHEST
from acla_nas.ops.jit import jit
from acla_nas.ops.products import multiply
from acla_nas.ops.vectors import power_of_two
from acla_nas.ops.windows import room_of

WINDOW = 3  # pixels of a window for each of its keys, at most: to read four around each is slower (measured)
_FAR = 1 << 24  # pixels; places farther off need not be told apart
_LOWEST = -80.0  # exponents are cut off here
_LOG2_E, _LN_2 = 1.4426950408889634, 0.6931471805599453


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
def owners_of(queries, keys):
    """Return of each key of so many queries, which have as many each, whose it is: (n K,), int32."""
    owners = np.empty(queries * keys, np.int32)
    for i in range(len(owners)):
        owners[i] = i // keys
    return owners


@jit()
def repeat(queries, base, inside):
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
def find_places(queries, line, first, owners, repeated, along_x, along_y, column, row, cell, across, down):
    """Write which pixel is at the upper left of the keys of a block, and how far beyond it they lie.

    Args:
        queries: that are worked on.
        line, first: the row of the block, and its first column.
        owners, repeated: see :func:`owners_of` and :func:`repeat`.
        along_x, along_y: (n K or more,), offsets beyond the base in a reference.
        column, row, cell: (n K,) int32, written: of the pixel, with those around the map counted.
        across, down: (n K,), written.
    """
    far, zero, edge, width = across.dtype.type(_FAR), np.int32(0), np.int32(EDGE), np.int32(width_of(queries))
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
def share_among_four(across, down, share):
    """Write the share of each of the four pixels around keys in what is read there: (4 n K,)."""
    whole = share.dtype.type(1)
    for i in range(len(across)):
        near, upper = whole - across[i], whole - down[i]
        share[4 * i] = upper * near
        share[4 * i + 1] = upper * across[i]
        share[4 * i + 2] = down[i] * near
        share[4 * i + 3] = down[i] * across[i]


@jit()
def exponentiate(x, highest):
    """Replace numbers (n,), cut off at a highest, by their exponentials; what is not a number stays so."""
    dtype = x.dtype.type
    lowest, half = dtype(_LOWEST), dtype(0.5)
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
def take_parts(pixels, scores, gates, softmax, keys, shift, is_known, parts):
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
    n, dtype = len(pixels), parts.dtype.type
    highest = dtype(HIGHEST - np.log(softmax.share))
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
        exponentiate(part, highest)


@jit()
def find_offsets(pixels, scores, offsets):
    """Write the offsets of a block in a reference beyond the base: (2, n K or more)."""
    n, keys = len(pixels), scores.shape[2]
    for axis in range(2):
        multiply(pixels, scores[axis], offsets[axis][: n * keys].reshape(n, keys))


@jit()
def weigh_keys(softmax, keys, part, inside, outside, gates, sums, weight):
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
def scale_shares(share, weight):
    """Multiply the shares of the four pixels around keys, (4 n K,), with the weights of these."""
    for i in range(len(weight)):
        share[4 * i] *= weight[i]
        share[4 * i + 1] *= weight[i]
        share[4 * i + 2] *= weight[i]
        share[4 * i + 3] *= weight[i]


@jit()
def room_of_window(keys):
    """Return for how many numbers of a window there is room."""
    return room_of(WINDOW * keys)
