"""Products of matrices, in vectors, within loops that Numba compiles: of those that lie in caches.

Six rows of the product by one vector of columns stay in registers, for all numbers that are summed.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from acla_nas.ops.vectors import Loop, intrinsic, matrix, nothing

_ROWS = 6


@intrinsic
def multiply(typing: Any, a: Any, b: Any, into: Any) -> Any:
    """Write the product of two matrices.

    Args:
        a: (m, k), with any strides.
        b: (k, n), its rows contiguous; of the same dtype.
        into: (m, n), written; likewise.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        a, b, into = (matrix(context, builder, *pair) for pair in zip(signature.args, arguments))

        def tile(first: Any, column: Any, rows: int, kind: Any) -> None:
            lines = [builder.add(first, loop.whole(r)) for r in range(rows)]
            starts = [builder.mul(line, a.row_stride) for line in lines]
            sums = [cgutils.alloca_once(builder, kind) for _ in lines]
            for total in sums:
                builder.store(ir.Constant(kind, None), total)
            with loop.counted(loop.whole(0), a.columns) as k:
                row = loop.load(loop.place(b.data, builder.add(builder.mul(k, b.row_stride), column), kind))
                behind = builder.mul(k, a.column_stride)
                for total, start in zip(sums, starts):
                    factor = builder.load(builder.gep(a.data, [builder.add(start, behind)]))
                    found = loop.multiply_add(loop.fill(factor, kind), row, builder.load(total))
                    builder.store(found, total)
            for line, total in zip(lines, sums):
                at = builder.add(builder.mul(line, into.row_stride), column)
                loop.store(builder.load(total), loop.place(into.data, at, kind))

        first, rest = loop.whole(0), builder.srem(a.rows, loop.whole(_ROWS))
        most = builder.sub(a.rows, rest)
        for lanes in (loop.lanes, loop.lanes // 2, loop.lanes // 4, 1):
            kind = ir.VectorType(loop.number, lanes) if lanes > 1 else loop.number
            left = builder.srem(builder.sub(b.columns, first), loop.whole(lanes))
            last = builder.sub(b.columns, left)
            with loop.counted(first, last, lanes) as column:
                with loop.counted(loop.whole(0), most, _ROWS) as row:
                    tile(row, column, _ROWS, kind)
                with loop.counted(most, a.rows) as row:
                    tile(row, column, 1, kind)
            first = last
        return context.get_dummy_value()

    return nothing(a, b, into), build
