"""Sums of rows of a table, in vectors.

A compiler has to test for each row whether it overlaps with another, which takes longer than the work on 64
channels: what is read and written in which order is said here instead. All arrays are contiguous and, but for
those of int32, of one dtype.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from acla_nas.ops.vectors import Loop, intrinsic, length, nothing

_TOGETHER = 4  # vectors of channels that stay in registers
_ROWS = 4  # whose products are made together: those around a key


@intrinsic
def add_rows(typing: Any, table: Any, index: Any, factor: Any, first: Any, last: Any, into: Any) -> Any:
    """Add to (C,) the rows of a table that entries first .. last - 1 name, times their factors.

    Args:
        table: (P, at least C).
        index, factor: of each entry, int32 and a number.
        first, last: of the entries.
        into: (C,), added to.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        table, index, factor, first, last, into = loop.arguments
        channels = length(context, builder, signature.args[5], arguments[5])

        def work(c: Any, kind: Any, count: int) -> None:
            sums = [cgutils.alloca_once(builder, kind) for _ in range(count)]
            for j, total in enumerate(sums):
                builder.store(loop.load(loop.place(into, c, kind, j)), total)
            with loop.counted(first, last) as entry:
                at = builder.add(loop.start_of(index, entry), c)
                weight = loop.fill(builder.load(builder.gep(factor, [entry])), kind)
                for j, total in enumerate(sums):
                    row = loop.load(loop.place(table, at, kind, j))
                    builder.store(loop.multiply_add(weight, row, builder.load(total)), total)
            for j, total in enumerate(sums):
                loop.store(builder.load(total), loop.place(into, c, kind, j))

        loop.over_channels(channels, _TOGETHER, work)
        return context.get_dummy_value()

    return nothing(table, index, factor, first, last, into), build


@intrinsic
def add_to_cells(
    typing: Any, table: Any, runs: Any, order: Any, row: Any, index: Any, factor: Any, given: Any
) -> Any:  # fmt: skip
    """Add rows of a matrix, times their factors, to four rows of a table each.

    Entries that name the same four rows follow each other: what they add is summed before it is added.

    Args:
        table: (P, C), added to.
        runs: (m + 1,), where in the order the entries of the same rows of the table begin.
        order: of entries.
        row: of each entry, which of the rows that are given it adds.
        index, factor: four of each entry, of rows of the table, and numbers.
        given: (n, C).
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        table, runs, order, row, index, factor, given = loop.arguments
        count_runs = builder.sub(length(context, builder, signature.args[1], arguments[1]), loop.whole(1))

        def read(array: Any, at: Any) -> Any:
            return builder.sext(builder.load(builder.gep(array, [at])), loop.width.type)

        def work(c: Any, kind: Any, count: int) -> None:
            sums = [[cgutils.alloca_once(builder, kind) for _ in range(count)] for _ in range(_ROWS)]
            with loop.counted(loop.whole(0), count_runs) as run:
                first, last = read(runs, run), read(runs, builder.add(run, loop.whole(1)))
                for line in sums:
                    for total in line:
                        builder.store(ir.Constant(kind, None), total)
                with loop.counted(first, last) as entry:
                    key = read(order, entry)
                    at = builder.add(loop.start_of(row, key), c)
                    vectors = [loop.load(loop.place(given, at, kind, j)) for j in range(count)]
                    four = builder.mul(key, loop.whole(_ROWS))
                    for i, line in enumerate(sums):
                        number = builder.load(builder.gep(factor, [builder.add(four, loop.whole(i))]))
                        weight = loop.fill(number, kind)
                        for total, vector in zip(line, vectors):
                            builder.store(loop.multiply_add(weight, vector, builder.load(total)), total)
                four = builder.mul(read(order, first), loop.whole(_ROWS))
                for i, line in enumerate(sums):
                    at = builder.add(loop.start_of(index, builder.add(four, loop.whole(i))), c)
                    for j, total in enumerate(line):
                        place = loop.place(table, at, kind, j)
                        loop.store(builder.fadd(loop.load(place), builder.load(total)), place)

        loop.over_channels(loop.width, _TOGETHER, work)
        return context.get_dummy_value()

    return nothing(table, runs, order, row, index, factor, given), build


@intrinsic
def multiply_rows(typing: Any, table: Any, index: Any, given: Any, first: Any, last: Any, into: Any) -> Any:
    """Write the products of (C,) with the rows of a table that entries first .. last - 1 name.

    Args:
        table: (P, at least C).
        index: of each entry, int32; there are a multiple of four.
        given: (C,).
        first, last: of the entries.
        into: the product of each entry, written.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        table, index, given, first, last, into = loop.arguments
        channels = length(context, builder, signature.args[2], arguments[2])
        zero = ir.Constant(ir.VectorType(loop.number, _ROWS), None)
        with loop.counted(first, last, _ROWS) as entry:
            loop.store(zero, loop.place(into, entry, zero.type))

        def work(c: Any, kind: Any, count: int) -> None:
            vectors = [loop.load(loop.place(given, c, kind, j)) for j in range(count)]
            with loop.counted(first, last, _ROWS) as entry:
                sums = []
                for i in range(_ROWS):
                    at = builder.add(loop.start_of(index, builder.add(entry, loop.whole(i))), c)
                    total = ir.Constant(kind, None)
                    for j, vector in enumerate(vectors):
                        total = loop.multiply_add(vector, loop.load(loop.place(table, at, kind, j)), total)
                    sums.append(total)
                place = loop.place(into, entry, zero.type)
                loop.store(builder.fadd(loop.load(place), loop.sum_each(sums)), place)

        loop.over_channels(channels, 2 * _TOGETHER, work, loop.lanes // 2)
        return context.get_dummy_value()

    return nothing(table, index, given, first, last, into), build
