"""Squares of four pixels of planes, in vectors, within loops that Numba compiles.

Entry i has the square ``cell[i]`` of plane i mod K, or of the only one: two numbers that follow each other
there, and the two that are a width of the plane behind them. Arrays are contiguous and, but for those of
int32, of one dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        squares = _Squares(context, builder, signature, arguments)
        four = squares.loop.arguments[4]
        with squares.every(0, 1) as (entry, upper, lower):
            numbers = squares.loop.shuffle(squares.loop.load(upper), squares.loop.load(lower), range(4))
            squares.loop.store(numbers, squares.four(four, entry))
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
        squares = _Squares(context, builder, signature, arguments)
        loop, (share, factor) = squares.loop, squares.loop.arguments[4:]
        # Neighbours' squares often overlap: a processor waits if it reads what it has just written a part of.
        for first in (0, 1):
            with squares.every(first, 2) as (entry, upper, lower):
                shares = loop.load(squares.four(share, entry))
                number = builder.load(builder.gep(factor, [entry]))
                added = builder.fmul(shares, loop.fill(number, shares.type))
                for i, place in enumerate((upper, lower)):
                    half = loop.shuffle(added, added, (2 * i, 2 * i + 1))
                    loop.store(builder.fadd(loop.load(place), half), place)
        return context.get_dummy_value()

    return nothing(planes, width, keys, cell, share, factor), build


class _Squares:
    """Builds loops over entries, from arguments that begin with planes, width, keys and cell."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.loop = loop = Loop(context, builder, signature, arguments)
        self.builder = builder
        self.planes, self.width, self.keys, self.cell = loop.arguments[:4]
        rows = matrix(context, builder, signature.args[0], arguments[0]).rows
        is_one = builder.icmp_signed("==", rows, loop.whole(1))
        self.step = builder.select(is_one, loop.whole(0), loop.width)
        self.count = builder.sdiv(length(context, builder, signature.args[3], arguments[3]), self.keys)

    @contextmanager
    def every(self, first: int, step: int) -> Iterator[tuple[Any, Any, Any]]:
        """Build a loop over all of every n-th K: of an entry, and where the pairs of its square are."""
        loop, builder = self.loop, self.builder
        pair = ir.VectorType(loop.number, 2)
        with (
            loop.counted(loop.whole(first), self.count, step) as line,
            loop.counted(loop.whole(0), self.keys) as key,
        ):
            entry = builder.add(builder.mul(line, self.keys), key)
            square = builder.sext(builder.load(builder.gep(self.cell, [entry])), loop.width.type)
            upper = builder.add(square, builder.mul(key, self.step))
            lower = builder.add(upper, self.width)
            yield entry, loop.place(self.planes, upper, pair), loop.place(self.planes, lower, pair)

    def four(self, array: Any, entry: Any) -> Any:
        """Return a pointer to the four numbers of an entry."""
        at = self.builder.mul(entry, self.loop.whole(4))
        return self.loop.place(array, at, ir.VectorType(self.loop.number, 4))
