"""Windows: rectangles of pixels around all keys of a query, in vectors, within loops that Numba compiles.

Keys that lie close together share pixels: to read each pixel of a window once is less work than to read four
for each key. Tables, (P, C), have a row for each pixel, and rows of pixels are a width apart. Arrays are
contiguous and, but for those of int32, of one dtype.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from acla_nas.ops.jit import jit
from acla_nas.ops.rows import ROWS, multiply_fours, sum_rows
from acla_nas.ops.squares import add_to_square, four_of, take_square
from acla_nas.ops.vectors import Loop, intrinsic, length, nothing

_LANES = 16  # keys whose places are compared together


@jit()
def room_of(pixels):
    """Return for how many numbers there must be room where there is one for each of so many pixels."""
    return (pixels + ROWS - 1) // ROWS * ROWS


@intrinsic
def frame(
    typing: Any, column: Any, row: Any, keys: Any, limit: Any, width: Any, room: Any, first: Any,
    columns: Any, count: Any, place: Any,
) -> Any:  # fmt: skip
    """Write the windows of n queries.

    Args:
        column, row: (n K,) int32, of the pixel at the upper left of each key.
        keys: K.
        limit: how many pixels a window may have.
        width: of the table.
        room: how far apart windows are where there is a number for each of their pixels.
        first: (n,) int32, written: the first pixel.
        columns: (n,) int32, written; 0 where there is no window.
        count: (n,) int32, written: the pixels, 0 where they are more than the limit: there is no window.
        place: (n K,) int32, written: where the first pixel of each key is among those of windows.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        column, row, keys, limit, width, room, first, columns, count, place = loop.arguments
        number = ir.IntType(32)
        vector = ir.VectorType(number, _LANES)
        limit, width, room = (builder.trunc(x, number) for x in (limit, width, room))
        queries = length(context, builder, signature.args[6], arguments[6])
        left = builder.srem(keys, loop.whole(_LANES))
        whole = builder.sub(keys, left)

        def load(array: Any, at: Any, kind: Any) -> Any:
            return builder.load(loop.place(array, at, kind), align=4)

        def chunks(work: Any, at: Any) -> None:
            for kind, begin, end in ((vector, loop.whole(0), whole), (number, whole, keys)):
                with loop.counted(begin, end, _LANES if kind is vector else 1) as key:
                    work(builder.add(at, key), kind)

        def extremes(array: Any, at: Any) -> tuple[Any, Any]:
            found = [cgutils.alloca_once(builder, number) for _ in range(2)]
            for extreme in found:
                builder.store(builder.load(builder.gep(array, [at])), extreme)

            def work(at: Any, kind: Any) -> None:
                values = load(array, at, kind)
                for extreme, name, sign in zip(found, ("smin", "smax"), ("<", ">")):
                    value = values
                    if kind is vector:
                        reduce = cgutils.get_or_insert_function(
                            builder.module,
                            ir.FunctionType(number, [vector]),
                            f"llvm.vector.reduce.{name}.v{_LANES}i32",
                        )
                        value = builder.call(reduce, [values])
                    before = builder.load(extreme)
                    is_beyond = builder.icmp_signed(sign, value, before)
                    builder.store(builder.select(is_beyond, value, before), extreme)

            chunks(work, at)
            return builder.load(found[0]), builder.load(found[1])

        with loop.counted(loop.whole(0), queries) as query:
            at = builder.mul(query, keys)
            begin, end = extremes(column, at)
            top, bottom = extremes(row, at)
            across = builder.add(builder.sub(end, begin), number(2))
            down = builder.add(builder.sub(bottom, top), number(2))
            pixels = builder.mul(across, down)
            fits = builder.icmp_signed("<=", pixels, limit)
            builder.store(builder.add(builder.mul(top, width), begin), builder.gep(first, [query]))
            builder.store(builder.select(fits, across, number(0)), builder.gep(columns, [query]))
            builder.store(builder.select(fits, pixels, number(0)), builder.gep(count, [query]))
            begin_there = builder.mul(builder.trunc(query, number), room)

            def write(at: Any, kind: Any) -> None:
                of_window = (loop.fill(x, kind) for x in (top, begin, across, begin_there))
                top_of, begin_of, across_of, there = of_window
                lines = builder.mul(builder.sub(load(row, at, kind), top_of), across_of)
                beyond = builder.add(lines, builder.sub(load(column, at, kind), begin_of))
                found = builder.add(there, builder.select(fits, beyond, ir.Constant(kind, None)))
                builder.store(found, loop.place(place, at, kind), align=4)

            chunks(write, at)
        return context.get_dummy_value()

    return nothing(column, row, keys, limit, width, room, first, columns, count, place), build


@intrinsic
def add_shares(typing: Any, shares: Any, keys: Any, columns: Any, place: Any, share: Any) -> Any:
    """Add the shares of keys to those of the pixels of their query's window.

    Args:
        shares: (n room,), of the pixels, added to; arbitrary where there is no window.
        keys: K.
        columns, place: of windows, see :func:`frame`.
        share: (4 n K,), of the four pixels around each key.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        shares, keys, columns, place, share = loop.arguments
        queries = length(context, builder, signature.args[2], arguments[2])
        # A query's keys share pixels: a processor waits if it reads what it has just written a part of.
        with loop.counted(loop.whole(0), keys) as key, loop.counted(loop.whole(0), queries) as query:
            entry = builder.add(builder.mul(query, keys), key)
            added = loop.load(four_of(loop, share, entry))
            add_to_square(loop, shares, loop.index(place, entry), loop.index(columns, query), added)
        return context.get_dummy_value()

    return nothing(shares, keys, columns, place, share), build


@intrinsic
def take_products(typing: Any, products: Any, keys: Any, columns: Any, place: Any, four: Any) -> Any:
    """Write of each key of queries that have a window what this has of the four pixels around it.

    Args:
        products: (n room,), of the pixels.
        keys: K.
        columns, place: of windows, see :func:`frame`.
        four: (4 n K,), written.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        products, keys, columns, place, four = loop.arguments
        queries = length(context, builder, signature.args[2], arguments[2])
        with loop.counted(loop.whole(0), queries) as query:
            width = loop.index(columns, query)
            with (
                builder.if_then(builder.icmp_signed(">", width, loop.whole(0))),
                loop.counted(loop.whole(0), keys) as key,
            ):
                entry = builder.add(builder.mul(query, keys), key)
                take_square(loop, products, loop.index(place, entry), width, four, entry)
        return context.get_dummy_value()

    return nothing(products, keys, columns, place, four), build


@intrinsic
def add_window(
    typing: Any, table: Any, width: Any, first: Any, columns: Any, count: Any, share: Any, into: Any
) -> Any:  # fmt: skip
    """Add to (C,) the rows of the pixels of a window, times their shares.

    Args:
        table: (P, C).
        width: of the table.
        first, columns, count: of the window, see :func:`frame`.
        share: of each pixel.
        into: (C,), added to.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        table, width, first, columns, count, share, into = loop.arguments

        def rows_from(c: Any) -> Any:
            walk = _Walk(loop, width, first, columns, c)
            return lambda pixel: [(walk.step(), builder.load(builder.gep(share, [pixel])))]

        sum_rows(loop, table, loop.whole(0), count, rows_from, into)
        return context.get_dummy_value()

    return nothing(table, width, first, columns, count, share, into), build


@intrinsic
def multiply_window(
    typing: Any, table: Any, width: Any, first: Any, columns: Any, count: Any, given: Any, into: Any
) -> Any:  # fmt: skip
    """Write the products of (C,) with the rows of the pixels of a window.

    Args:
        table: (P, C); three pixels behind the window are read, too.
        width, first, columns, count: as for :func:`add_window`.
        given: (C,).
        into: the product of each pixel, written; with :func:`room_of` these, of which the last are arbitrary.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        table, width, first, columns, count, given, into = loop.arguments
        fours = builder.sdiv(builder.add(count, loop.whole(ROWS - 1)), loop.whole(ROWS))

        def rows_from(c: Any) -> Any:
            walk = _Walk(loop, width, first, columns, c)
            return lambda _: [walk.step() for _ in range(ROWS)]

        multiply_fours(loop, table, given, loop.whole(0), fours, rows_from, into)
        return context.get_dummy_value()

    return nothing(table, width, first, columns, count, given, into), build


class _Walk:
    """Goes through the pixels of a window, row by row: where in the table a channel of each is."""

    def __init__(self, loop: Loop, width: Any, first: Any, columns: Any, channel: Any) -> None:
        self.loop, self.builder, self.columns = loop, loop.builder, columns
        builder = loop.builder
        self.to_next_row = builder.mul(builder.sub(width, columns), loop.width)
        self.at, self.left = (cgutils.alloca_once(builder, loop.width.type) for _ in range(2))
        builder.store(builder.add(builder.mul(first, loop.width), channel), self.at)
        builder.store(columns, self.left)

    def step(self) -> Any:
        """Return where that of the next pixel is."""
        builder, loop = self.builder, self.loop
        at, left = builder.load(self.at), builder.sub(builder.load(self.left), loop.whole(1))
        is_last = builder.icmp_signed("==", left, loop.whole(0))
        beyond = builder.select(is_last, self.to_next_row, loop.whole(0))
        builder.store(builder.add(builder.add(at, loop.width), beyond), self.at)
        builder.store(builder.select(is_last, self.columns, left), self.left)
        return at
