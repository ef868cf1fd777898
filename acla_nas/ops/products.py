"""Products of matrices, in vectors, within loops that Numba compiles: of those that lie in caches.

A tile of the product stays in registers for all numbers that are summed: as many rows by vectors of columns
as the machine at hand has registers for, and fewer of what is left.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

from acla_nas.ops.vectors import Loop, intrinsic, matrix, shared


def _tile_sizes() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how many rows tiles have, and how many vectors of columns, each the largest first."""
    if binding.get_host_cpu_features().get("avx512f"):  # 32 registers of a vector each
        return (12, 4, 1), (2, 1)
    return (6, 4, 1), (1,)  # 16 registers of half a vector each


_ROWS, _VECTORS = _tile_sizes()


@intrinsic
def multiply(typing: Any, a: Any, b: Any, into: Any) -> Any:
    """Write the product of two matrices.

    Args:
        a: (m, k), with any strides.
        b: (k, n), its rows contiguous; of the same dtype.
        into: (m, n), written; likewise.
    """

    return shared("multiply", _builder(is_added=False), a, b, into)


@intrinsic
def add_product(typing: Any, a: Any, b: Any, into: Any) -> Any:
    """Add the product of two matrices: as :func:`multiply`, which writes it."""
    return shared("add_product", _builder(is_added=True), a, b, into)


def _builder(*, is_added: bool) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        loop = Loop(context, builder, signature, arguments)
        a, b, into = (matrix(context, builder, *pair) for pair in zip(signature.args, arguments))

        def tile(first: Any, column: Any, rows: int, kinds: list[Any]) -> None:
            lines = [builder.add(first, loop.whole(r)) for r in range(rows)]
            starts = [builder.mul(line, a.row_stride) for line in lines]
            sums = [[cgutils.alloca_once(builder, kind) for kind in kinds] for _ in lines]
            places = [
                [
                    loop.place(into.data, builder.add(builder.mul(line, into.row_stride), column), kind, j)
                    for j, kind in enumerate(kinds)
                ]
                for line in lines
            ]
            for of_line, totals in zip(places, sums):
                for place, total, kind in zip(of_line, totals, kinds):
                    builder.store(loop.load(place) if is_added else ir.Constant(kind, None), total)
            with loop.counted(loop.whole(0), a.columns) as k:
                at = builder.add(builder.mul(k, b.row_stride), column)
                row = [loop.load(loop.place(b.data, at, kind, j)) for j, kind in enumerate(kinds)]
                behind = builder.mul(k, a.column_stride)
                for totals, start in zip(sums, starts):
                    factor = builder.load(builder.gep(a.data, [builder.add(start, behind)]))
                    for total, vector in zip(totals, row):
                        found = loop.multiply_add(loop.fill(factor, vector.type), vector, builder.load(total))
                        builder.store(found, total)
            for of_line, totals in zip(places, sums):
                for place, total in zip(of_line, totals):
                    loop.store(builder.load(total), place)

        zero = first = loop.whole(0)
        vector = ir.VectorType(loop.number, loop.lanes)
        halves = (loop.lanes // 2, loop.lanes // 4)
        widths: list[list[Any]] = [[vector] * count for count in _VECTORS]
        widths += [[ir.VectorType(loop.number, lanes)] for lanes in halves] + [[loop.number]]
        for kinds in widths:
            columns = sum(getattr(kind, "count", 1) for kind in kinds)
            left = builder.srem(builder.sub(b.columns, first), loop.whole(columns))
            last = builder.sub(b.columns, left)
            with loop.counted(first, last, columns) as column:
                done = zero
                for rows in _ROWS:
                    left = builder.srem(builder.sub(a.rows, done), loop.whole(rows))
                    most = builder.sub(a.rows, left)
                    with loop.counted(done, most, rows) as row:
                        tile(row, column, rows, kinds)
                    done = most
            first = last

    return build
