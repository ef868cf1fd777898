"""Squares of four pixels of planes, in vectors, within loops that Numba compiles.

Entry i has the square ``cell[i]`` of plane i mod K, or of the only one: two numbers that follow each other
there, and the two that are a width of the plane behind them. Arrays are contiguous and, but for those of
int32, of one dtype.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from acla_nas.ops.vectors import Loop, intrinsic, length, matrix, nothing


@intrinsic
def take_squares(typing: Any, planes: Any, width: Any, keys: Any, cell: Any, four: Any) -> Any:
    """Write the numbers of each entry's square.

    Args:
        planes: (K, P), or (1, P).
        width: of a plane.
        keys: K.
        cell: (n K,).
        four: (4 n K,), written.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        planes, width, keys, cell, four = loop.arguments
        step = _step(context, loop, signature, arguments)
        queries = builder.sdiv(length(context, builder, signature.args[3], arguments[3]), keys)
        with loop.counted(loop.whole(0), queries) as query, loop.counted(loop.whole(0), keys) as key:
            entry = builder.add(builder.mul(query, keys), key)
            at = builder.add(loop.index(cell, entry), builder.mul(key, step))
            take_square(loop, planes, at, width, four, entry)
        return context.get_dummy_value()

    return nothing(planes, width, keys, cell, four), build


@intrinsic
def add_to_squares(
    typing: Any, planes: Any, width: Any, keys: Any, cell: Any, share: Any, factor: Any
) -> Any:  # fmt: skip
    """Add a number of each entry to its square, times four shares.

    Args:
        planes: (K, P), or (1, P), added to.
        width, keys, cell: as for :func:`take_squares`.
        share: (4 n K,).
        factor: (n K,).
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        planes, width, keys, cell, share, factor = loop.arguments
        step = _step(context, loop, signature, arguments)
        queries = builder.sdiv(length(context, builder, signature.args[3], arguments[3]), keys)
        # Neighbours' squares often overlap: a processor waits if it reads what it has just written a part of.
        for first in (0, 1):
            with (
                loop.counted(loop.whole(first), queries, 2) as query,
                loop.counted(loop.whole(0), keys) as key,
            ):
                entry = builder.add(builder.mul(query, keys), key)
                at = builder.add(loop.index(cell, entry), builder.mul(key, step))
                shares = loop.load(four_of(loop, share, entry))
                number = builder.load(builder.gep(factor, [entry]))
                added = builder.fmul(shares, loop.fill(number, shares.type))
                add_to_square(loop, planes, at, width, added)
        return context.get_dummy_value()

    return nothing(planes, width, keys, cell, share, factor), build


def take_square(loop: Loop, numbers: Any, at: Any, width: Any, four: Any, entry: Any) -> None:
    """Build what writes the square that begins at a place as the four numbers of an entry."""
    upper, lower = (loop.load(of) for of in _pairs(loop, numbers, at, width))
    loop.store(loop.shuffle(upper, lower, range(4)), four_of(loop, four, entry))


def add_to_square(loop: Loop, numbers: Any, at: Any, width: Any, added: Any) -> None:
    """Build what adds a vector of four numbers to the square that begins at a place."""
    for i, pair in enumerate(_pairs(loop, numbers, at, width)):
        half = loop.shuffle(added, added, (2 * i, 2 * i + 1))
        loop.store(loop.builder.fadd(loop.load(pair), half), pair)


def four_of(loop: Loop, array: Any, entry: Any) -> Any:
    """Return a pointer to the four numbers of an entry."""
    at = loop.builder.mul(entry, loop.whole(4))
    return loop.place(array, at, ir.VectorType(loop.number, 4))


def _pairs(loop: Loop, numbers: Any, at: Any, width: Any) -> list[Any]:
    """Return pointers to the two numbers of the upper row of a square, and of the lower one."""
    pair = ir.VectorType(loop.number, 2)
    return [loop.place(numbers, row, pair) for row in (at, loop.builder.add(at, width))]


def _step(context: Any, loop: Loop, signature: Any, arguments: Any) -> Any:
    """Return how far the plane of a key is behind that of the one before: 0 if there is but one."""
    rows = matrix(context, loop.builder, signature.args[0], arguments[0]).rows
    is_one = loop.builder.icmp_signed("==", rows, loop.whole(1))
    return loop.builder.select(is_one, loop.whole(0), loop.width)
