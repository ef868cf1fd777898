"""Transposition of matrices, in vectors, within loops that Numba compiles."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from acla_nas.ops.vectors import Loop, intrinsic, matrix, shared


@intrinsic
def transpose(typing: Any, a: Any, into: Any) -> Any:
    """Write a transposed matrix.

    Args:
        a: (m, n), its rows contiguous.
        into: (n, m), written; likewise, and of the same dtype.
    """
    return shared("transpose", _builder(is_added=False), a, into)


@intrinsic
def add_transposed(typing: Any, a: Any, into: Any) -> Any:
    """Add a transposed matrix: as :func:`transpose`, which writes it."""
    return shared("add_transposed", _builder(is_added=True), a, into)


def _builder(*, is_added: bool) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        loop = Loop(context, builder, signature, arguments)
        a, into = (matrix(context, builder, *pair) for pair in zip(signature.args, arguments))
        size = loop.lanes // 2  # blocks of 8 x 8 or 4 x 4 fit into the registers of most machines

        def place(of: Any, row: Any, column: Any, kind: Any) -> Any:
            return loop.place(of.data, builder.add(builder.mul(row, of.row_stride), column), kind)

        def copy(size: int, rows: tuple[Any, Any], columns: tuple[Any, Any]) -> None:
            kind = ir.VectorType(loop.number, size) if size > 1 else loop.number
            with loop.counted(*columns, size) as column, loop.counted(*rows, size) as row:
                lines = [
                    loop.load(place(a, builder.add(row, loop.whole(i)), column, kind)) for i in range(size)
                ]
                for i, line in enumerate(_transposed(loop, lines) if size > 1 else lines):
                    to = place(into, builder.add(column, loop.whole(i)), row, kind)
                    loop.store(builder.fadd(loop.load(to), line) if is_added else line, to)

        first = loop.whole(0)
        rows, columns = (
            builder.sub(count, builder.srem(count, loop.whole(size))) for count in (a.rows, a.columns)
        )
        copy(size, (first, rows), (first, columns))
        copy(1, (rows, a.rows), (first, columns))
        copy(1, (first, a.rows), (columns, a.columns))

    return build


def _transposed(loop: Loop, lines: list[Any]) -> list[Any]:
    """Return the columns of a square of vectors: halves are exchanged, then halves of these, and so on."""
    size = half = len(lines)
    while half > 1:
        half //= 2
        first = [j if not j & half else size + j - half for j in range(size)]
        second = [j + half if not j & half else size + j for j in range(size)]
        for i in (i for i in range(size) if not i & half):
            upper, lower = lines[i], lines[i + half]
            lines[i], lines[i + half] = loop.shuffle(upper, lower, first), loop.shuffle(upper, lower, second)
    return lines
