"""Windows: rectangles of pixels around all keys of a query, in vectors, within loops that Numba compiles.

Keys that lie close together share pixels: to read each pixel of a window once, or to add to it once, is less
work than four for each key. Tables, (P, C), have a row for each pixel, and rows of pixels are a width apart.
Arrays are contiguous and, but for those of int32, of one dtype.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from acla_nas.ops.jit import jit
from acla_nas.ops.vectors import Loop, intrinsic, length, nothing

_LANES = 16  # keys whose places are compared together
_TOGETHER = 4  # vectors of channels that stay in registers
_PIXELS = 4  # whose products are made together


@jit()
def room_of(pixels):
    """Return for how many numbers there must be room where there is one for each of so many pixels."""
    return (pixels + _PIXELS - 1) // _PIXELS * _PIXELS


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
            across, pixels, one = (builder.select(fits, x, number(0)) for x in (across, pixels, number(1)))
            builder.store(across, builder.gep(columns, [query]))
            builder.store(pixels, builder.gep(count, [query]))
            begin_there = builder.mul(builder.trunc(query, number), room)

            def write(at: Any, kind: Any) -> None:
                factors = (top, begin, across, one, begin_there)
                top_of, begin_of, across_of, one_of, there = (loop.fill(x, kind) for x in factors)
                lines = builder.mul(builder.sub(load(row, at, kind), top_of), across_of)
                beyond = builder.mul(builder.sub(load(column, at, kind), begin_of), one_of)
                found = builder.add(builder.add(lines, beyond), there)
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
        around = _Around(context, builder, signature, arguments, columns=2, place=3)
        loop, (shares, keys, _, _, share) = around.loop, around.loop.arguments
        # A query's keys share pixels: a processor waits if it reads what it has just written a part of.
        with loop.counted(loop.whole(0), keys) as key, loop.counted(loop.whole(0), around.queries) as query:
            entry = builder.add(builder.mul(query, keys), key)
            added = loop.load(around.four(share, entry))
            for i, to in enumerate(around.pairs(shares, query, entry)):
                half = loop.shuffle(added, added, (2 * i, 2 * i + 1))
                loop.store(builder.fadd(loop.load(to), half), to)
        return context.get_dummy_value()

    return nothing(shares, keys, columns, place, share), build


@intrinsic
def take_products(
    typing: Any, products: Any, keys: Any, columns: Any, count: Any, place: Any, four: Any
) -> Any:  # fmt: skip
    """Write of each key of queries that have a window what this has of the four pixels around it.

    Args:
        products: (n room,), of the pixels.
        keys: K.
        columns, count, place: of windows, see :func:`frame`.
        four: (4 n K,), written.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        around = _Around(context, builder, signature, arguments, columns=2, place=4)
        loop, (products, keys, _, count, _, four) = around.loop, around.loop.arguments
        with (
            loop.counted(loop.whole(0), around.queries) as query,
            builder.if_then(builder.icmp_signed(">", around.read(count, query), loop.whole(0))),
            loop.counted(loop.whole(0), keys) as key,
        ):
            entry = builder.add(builder.mul(query, keys), key)
            upper, lower = (loop.load(of) for of in around.pairs(products, query, entry))
            loop.store(loop.shuffle(upper, lower, range(4)), around.four(four, entry))
        return context.get_dummy_value()

    return nothing(products, keys, columns, count, place, four), build


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

        def work(c: Any, kind: Any, number: int) -> None:
            sums = [cgutils.alloca_once(builder, kind) for _ in range(number)]
            for j, total in enumerate(sums):
                builder.store(loop.load(loop.place(into, c, kind, j)), total)
            walk = _Walk(loop, width, first, columns, c)
            with loop.counted(loop.whole(0), count) as pixel:
                at, factor = walk.step(), loop.fill(builder.load(builder.gep(share, [pixel])), kind)
                for j, total in enumerate(sums):
                    row = loop.load(loop.place(table, at, kind, j))
                    builder.store(loop.multiply_add(factor, row, builder.load(total)), total)
            for j, total in enumerate(sums):
                loop.store(builder.load(total), loop.place(into, c, kind, j))

        loop.over_channels(loop.width, _TOGETHER, work)
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
        zero = ir.Constant(ir.VectorType(loop.number, _PIXELS), None)
        with loop.counted(loop.whole(0), count, _PIXELS) as pixel:
            loop.store(zero, loop.place(into, pixel, zero.type))

        def work(c: Any, kind: Any, number: int) -> None:
            vectors = [loop.load(loop.place(given, c, kind, j)) for j in range(number)]
            walk = _Walk(loop, width, first, columns, c)
            with loop.counted(loop.whole(0), count, _PIXELS) as pixel:
                sums = []
                for _ in range(_PIXELS):
                    at, total = walk.step(), ir.Constant(kind, None)
                    for j, vector in enumerate(vectors):
                        total = loop.multiply_add(vector, loop.load(loop.place(table, at, kind, j)), total)
                    sums.append(total)
                to = loop.place(into, pixel, zero.type)
                loop.store(builder.fadd(loop.load(to), loop.sum_each(sums)), to)

        loop.over_channels(loop.width, 2 * _TOGETHER, work, loop.lanes // 2)
        return context.get_dummy_value()

    return nothing(table, width, first, columns, count, given, into), build


class _Around:
    """Finds the four pixels around keys in windows, and four numbers of each key in an array."""

    def __init__(
        self, context: Any, builder: Any, signature: Any, arguments: Any, columns: int, place: int
    ) -> None:
        self.loop, self.builder = Loop(context, builder, signature, arguments), builder
        self.columns, self.place = self.loop.arguments[columns], self.loop.arguments[place]
        self.queries = length(context, builder, signature.args[columns], arguments[columns])

    def read(self, array: Any, at: Any) -> Any:
        """Return a number of an array of int32."""
        return self.builder.sext(self.builder.load(self.builder.gep(array, [at])), self.loop.whole(0).type)

    def pairs(self, of: Any, query: Any, entry: Any) -> list[Any]:
        """Return pointers to those of the upper row, and to those of the lower one."""
        upper = self.read(self.place, entry)
        lower = self.builder.add(upper, self.read(self.columns, query))
        return [self.loop.place(of, at, ir.VectorType(self.loop.number, 2)) for at in (upper, lower)]

    def four(self, of: Any, entry: Any) -> Any:
        """Return a pointer to the numbers of a key."""
        at = self.builder.mul(entry, self.loop.whole(4))
        return self.loop.place(of, at, ir.VectorType(self.loop.number, 4))


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
