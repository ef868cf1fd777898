"""What the loops of ACLA on a CPU work on: query pixels, block by block, and maps laid out as rows of pixels.

Q query pixels, those of b images, have K keys in each of R references, maps of the query's size.
``pixels``, (Q, C), and ``scores``, (R, 3, C, K), have the query and what projects it to its keys: for each
reference to the offsets beyond ``base``, (K, 2), along x and along y, and to the logits. ``tables``,
(R, P, C), have a row for each pixel of a reference in one image, G x, and ``masks``, (R, M, P), a plane for
each of its masks, M x: one or K, none where there are no masks. Both have zeros around the map, so that what
is outside of it is read like the rest: their rows of pixels are ``width_of`` apart. Keys of n neighbouring
queries of a row are worked on together, one simple loop after the other, which compilers make fast; what
belongs to them stays in a near cache. The indices of parallel loops, which Numba may count without a sign,
are turned into the integers that all else is compiled for: it would be compiled a second time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from acla_nas.ops.addresses import matrix_at
from acla_nas.ops.jit import jit
from acla_nas.ops.products import multiply
from acla_nas.ops.vectors import copy_rows

STRIP = 48  # pixels projected together: they stay in the nearest cache
FORWARD, BACKWARD = 24, 48  # queries worked on together: for all references, and for one (measured)
EDGE = 2  # pixels of zeros around a map: what is farther off is as if it were there


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
    return queries._replace(images=1, together=STRIP)


def size_of_plane(queries: Queries) -> int:
    """Return how many pixels a map has with those around, P; products with windows read a row more."""
    return (queries.h + 2 * EDGE + 1) * (queries.w + EDGE) + EDGE


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


@jit()
def reference_at(references, r):
    """Return one of the references, (R, 5)."""
    of = references[r]
    return Reference(of[0], of[1], of[2], of[3], of[4])


@jit()
def _blocks_of_row(queries):
    """Return in how many blocks of queries a row is worked on."""
    return (queries.w + queries.together - 1) // queries.together


@jit()
def most_of_block(queries):
    """Return how many queries a block has at most, n."""
    return (queries.w + _blocks_of_row(queries) - 1) // _blocks_of_row(queries)


@jit()
def count_tasks(queries):
    """Return how many blocks of queries there are in all."""
    return queries.images * queries.h * _blocks_of_row(queries)


@jit()
def block_at(queries, task):
    """Return of the n-th block its row and its first column, its first query and the one behind its last."""
    blocks = _blocks_of_row(queries)
    line, part = task // blocks, task % blocks
    begin, end = part * queries.w // blocks, (part + 1) * queries.w // blocks
    return line, begin, line * queries.w + begin, line * queries.w + end


@jit()
def width_of(queries):
    """Return how far apart rows of pixels are: what is right of one is left of the next."""
    return queries.w + EDGE


@jit()
def cell_of(queries, line, column):
    """Return which of P a pixel is; its row is counted from that of the first image."""
    return (line % queries.h + EDGE) * width_of(queries) + column + EDGE


@jit()
def clear_edges(queries, table):
    """Write the zeros around a map, (P, C)."""
    end = 0
    for line in range(queries.h):
        begin = cell_of(queries, line, 0)
        table[end:begin] = 0
        end = begin + queries.w
    table[end:] = 0


@jit()
def image_at(address, image, channels, pixels, like):
    """Return an image of features (b, C, P), which begin at an address: (C, P)."""
    return matrix_at(address + image * channels * pixels * like.itemsize, channels, pixels, like)


@jit()
def pixels_at(address, is_turned, channels, pixels, image, first, last, like):
    """Return pixels first .. last - 1 of an image, (last - first, C), of features (b, C, P) or (b, P, C).

    Channels that are far apart are brought together: in a cache they would be in each other's way.
    """
    if is_turned:
        return image_at(address, image, pixels, channels, like)[first:last, 0:channels]
    together = np.empty((channels, last - first), like.dtype)
    copy_rows(image_at(address, image, channels, pixels, like)[:, first:last], together)
    return together[:, 0 : last - first].T


@jit()
def lay_out(strips, task, reference, image, to_table, table, masks):
    """Write a strip of the table of a reference of an image, (P, C), and of its masks, (M, P).

    Args:
        strips, task: see :func:`strips_of`, and which.
        reference, image: which.
        to_table: (largest C_l, C), what a pixel is multiplied with.
        table, masks: written.
    """
    line, begin, first, last = block_at(strips, task)
    channels, at = table.shape[1], cell_of(strips, line, begin)
    end = at + last - first
    of = pixels_at(
        reference.feature, False, reference.channels, strips.h * strips.w, image, first, last, table
    )
    multiply(of, to_table[: reference.channels], table[at:end])
    projection = matrix_at(reference.projection, channels + len(masks), reference.channels, table)
    multiply(projection[channels:], of.T, masks[:, at:end])


@jit()
def add_pixels(more, into):
    """Add numbers (n, C) to others."""
    for p in range(len(into)):
        for c in range(into.shape[1]):
            into[p, c] += more[p, c]
