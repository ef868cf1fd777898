"""Sums of rows of a table, those of the four pixels around each key, in vectors.

Tables, (P, C), have a row for each pixel, and rows of pixels are a width apart: pixel i is around a key with
i + 1, i + width and i + width + 1. A compiler has to test for each row whether it overlaps with another, and
that takes longer than the work on 64 channels: what is read and written in which order is said here instead.
All arrays are contiguous and, but for those of int32, of one dtype.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from acla_nas.ops.vectors import Loop, intrinsic, length, nothing

_TOGETHER = 4  # vectors of channels that stay in registers
ROWS = 4  # around a key; as many products are made together


@intrinsic
def add_rows(
    typing: Any, table: Any, width: Any, index: Any, factor: Any, first: Any, last: Any, into: Any
) -> Any:  # fmt: skip
    """Add to (C,) the rows of a table around keys first .. last - 1, times their factors.

    Args:
        table: (P, C).
        width: of the table.
        index: of each key, int32, its first pixel.
        factor: four of each key.
        first, last: of the keys.
        into: (C,), added to.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        table, width, index, factor, first, last, into = loop.arguments

        def rows_from(c: Any) -> Any:
            def rows_of(key: Any) -> list[tuple[Any, Any]]:
                four = builder.mul(key, loop.whole(ROWS))
                numbers = [
                    builder.load(builder.gep(factor, [builder.add(four, loop.whole(i))])) for i in range(ROWS)
                ]
                return list(zip(_around(loop, index, key, width, c), numbers))

            return rows_of

        sum_rows(loop, table, first, last, rows_from, into)
        return context.get_dummy_value()

    return nothing(table, width, index, factor, first, last, into), build


@intrinsic
def add_to_cells(
    typing: Any, table: Any, width: Any, runs: Any, order: Any, row: Any, index: Any, factor: Any, given: Any
) -> Any:  # fmt: skip
    """Add rows of a matrix, times their factors, to the four rows of a table around each key.

    Keys between the same pixels follow each other: what they add is summed before it is added.

    Args:
        table: (P, C), added to.
        width, index, factor: as for :func:`add_rows`.
        runs: (m + 1,), where in the order the keys between the same pixels begin.
        order: of keys.
        row: of each key, which of the rows that are given it adds.
        given: (n, C).
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        table, width, runs, order, row, index, factor, given = loop.arguments
        count_runs = builder.sub(length(context, builder, signature.args[2], arguments[2]), loop.whole(1))

        def work(c: Any, kind: Any, count: int) -> None:
            sums = [[cgutils.alloca_once(builder, kind) for _ in range(count)] for _ in range(ROWS)]
            with loop.counted(loop.whole(0), count_runs) as run:
                first, last = loop.index(runs, run), loop.index(runs, builder.add(run, loop.whole(1)))
                for line in sums:
                    for total in line:
                        builder.store(ir.Constant(kind, None), total)
                with loop.counted(first, last) as entry:
                    key = loop.index(order, entry)
                    at = builder.add(loop.start_of(row, key), c)
                    vectors = [loop.load(loop.place(given, at, kind, j)) for j in range(count)]
                    four = builder.mul(key, loop.whole(ROWS))
                    for i, line in enumerate(sums):
                        number = builder.load(builder.gep(factor, [builder.add(four, loop.whole(i))]))
                        weight = loop.fill(number, kind)
                        for total, vector in zip(line, vectors):
                            builder.store(loop.multiply_add(weight, vector, builder.load(total)), total)
                for line, at in zip(sums, _around(loop, index, loop.index(order, first), width, c)):
                    for j, total in enumerate(line):
                        place = loop.place(table, at, kind, j)
                        loop.store(builder.fadd(loop.load(place), builder.load(total)), place)

        loop.over_channels(loop.width, _TOGETHER, work)
        return context.get_dummy_value()

    return nothing(table, width, runs, order, row, index, factor, given), build


@intrinsic
def multiply_rows(
    typing: Any, table: Any, width: Any, index: Any, given: Any, first: Any, last: Any, into: Any
) -> Any:  # fmt: skip
    """Write the products of (C,) with the rows of a table around keys first .. last - 1.

    Args:
        table: (P, C).
        width, index: as for :func:`add_rows`.
        given: (C,).
        first, last: of the keys.
        into: four products of each key, written.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        table, width, index, given, first, last, into = loop.arguments

        def rows_from(c: Any) -> Any:
            return lambda key: _around(loop, index, key, width, c)

        multiply_fours(loop, table, given, first, last, rows_from, into)
        return context.get_dummy_value()

    return nothing(table, width, index, given, first, last, into), build


def _around(loop: Loop, index: Any, key: Any, width: Any, channel: Any) -> list[Any]:
    """Return where in a table a channel of each of the four pixels around a key is."""
    builder = loop.builder
    upper = builder.add(loop.start_of(index, key), channel)
    lower = builder.add(upper, builder.mul(width, loop.width))
    return [upper, builder.add(upper, loop.width), lower, builder.add(lower, loop.width)]


def sum_rows(loop: Loop, table: Any, first: Any, last: Any, rows_from: Any, into: Any) -> None:
    """Build a loop that adds rows of a table to (C,), times their factors.

    Args:
        loop, table, into: of the function that is built.
        first, last: entries are first .. last - 1.
        rows_from: for a channel a function of an entry: pairs of where that is in a row, and of a factor.
    """
    builder = loop.builder

    def work(c: Any, kind: Any, count: int) -> None:
        sums = [cgutils.alloca_once(builder, kind) for _ in range(count)]
        for j, total in enumerate(sums):
            builder.store(loop.load(loop.place(into, c, kind, j)), total)
        rows_of = rows_from(c)
        with loop.counted(first, last) as entry:
            for at, number in rows_of(entry):
                factor = loop.fill(number, kind)
                for j, total in enumerate(sums):
                    row = loop.load(loop.place(table, at, kind, j))
                    builder.store(loop.multiply_add(factor, row, builder.load(total)), total)
        for j, total in enumerate(sums):
            loop.store(builder.load(total), loop.place(into, c, kind, j))

    loop.over_channels(loop.width, _TOGETHER, work)


def multiply_fours(
    loop: Loop, table: Any, given: Any, first: Any, last: Any, rows_from: Any, into: Any
) -> None:  # fmt: skip
    """Build a loop that writes the products of (C,) with rows of a table, four at a time.

    Args:
        loop, table, given, into: of the function that is built.
        first, last: entries are first .. last - 1, with four products each.
        rows_from: for a channel a function of an entry: where that is in each of its four rows.
    """
    builder = loop.builder
    zero = ir.Constant(ir.VectorType(loop.number, ROWS), None)

    def products_of(entry: Any) -> Any:
        return loop.place(into, builder.mul(entry, loop.whole(ROWS)), zero.type)

    with loop.counted(first, last) as entry:
        loop.store(zero, products_of(entry))

    def work(c: Any, kind: Any, count: int) -> None:
        vectors = [loop.load(loop.place(given, c, kind, j)) for j in range(count)]
        rows_of = rows_from(c)
        with loop.counted(first, last) as entry:
            sums = []
            for at in rows_of(entry):
                total = ir.Constant(kind, None)
                for j, vector in enumerate(vectors):
                    total = loop.multiply_add(vector, loop.load(loop.place(table, at, kind, j)), total)
                sums.append(total)
            place = products_of(entry)
            loop.store(builder.fadd(loop.load(place), loop.sum_each(sums)), place)

    loop.over_channels(loop.width, 2 * _TOGETHER, work, loop.lanes // 2)
