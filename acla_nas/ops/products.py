"""Products of matrices, in vectors, within loops that Numba compiles: of those that lie in caches.

Six rows of the product, or four of what is left, by one vector of columns stay in registers, for all numbers
that are summed.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from acla_nas.ops.vectors import Loop, intrinsic, matrix, nothing

_ROWS = (6, 4, 1)


@intrinsic
def multiply(typing: Any, a: Any, b: Any, into: Any) -> Any:
    """Write the product of two matrices.

    Args:
        a: (m, k), with any strides.
        b: (k, n), its rows contiguous; of the same dtype.
        into: (m, n), written; likewise.
    """

    return nothing(a, b, into), _builder(is_added=False)


@intrinsic
def add_product(typing: Any, a: Any, b: Any, into: Any) -> Any:
    """Add the product of two matrices: as :func:`multiply`, which writes it."""
    return nothing(a, b, into), _builder(is_added=True)


def _builder(*, is_added: bool) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        a, b, into = (matrix(context, builder, *pair) for pair in zip(signature.args, arguments))

        def tile(first: Any, column: Any, rows: int, kind: Any) -> None:
            lines = [builder.add(first, loop.whole(r)) for r in range(rows)]
            starts = [builder.mul(line, a.row_stride) for line in lines]
            sums = [cgutils.alloca_once(builder, kind) for _ in lines]
            places = [
                loop.place(into.data, builder.add(builder.mul(line, into.row_stride), column), kind)
                for line in lines
            ]
            for place, total in zip(places, sums):
                builder.store(loop.load(place) if is_added else ir.Constant(kind, None), total)
            with loop.counted(loop.whole(0), a.columns) as k:
                row = loop.load(loop.place(b.data, builder.add(builder.mul(k, b.row_stride), column), kind))
                behind = builder.mul(k, a.column_stride)
                for total, start in zip(sums, starts):
                    factor = builder.load(builder.gep(a.data, [builder.add(start, behind)]))
                    found = loop.multiply_add(loop.fill(factor, kind), row, builder.load(total))
                    builder.store(found, total)
            for place, total in zip(places, sums):
                loop.store(builder.load(total), place)

        zero = first = loop.whole(0)
        for lanes in (loop.lanes, loop.lanes // 2, loop.lanes // 4, 1):
            kind = ir.VectorType(loop.number, lanes) if lanes > 1 else loop.number
            left = builder.srem(builder.sub(b.columns, first), loop.whole(lanes))
            last = builder.sub(b.columns, left)
            with loop.counted(first, last, lanes) as column:
                done = zero
                for rows in _ROWS:
                    left = builder.srem(builder.sub(a.rows, done), loop.whole(rows))
                    most = builder.sub(a.rows, left)
                    with loop.counted(done, most, rows) as row:
                        tile(row, column, rows, kind)
                    done = most
            first = last
        return context.get_dummy_value()

    return build
