"""Vector instructions for the innermost loops of those that Numba compiles.

They are given to LLVM as they are to be, which makes those of the machine at hand of them. Functions made of
them are called from compiled functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _numba_intrinsic
from numba.np.arrayobj import make_array

_VECTOR_BYTES = 64
_FUSED = ("contract",)
_integer: Any = types.intp
intrinsic: Any = _numba_intrinsic


class Matrix(NamedTuple):
    """A 2-dimensional array: a pointer to its first number, its shape, and its strides in numbers."""

    data: Any
    rows: Any
    columns: Any
    row_stride: Any
    column_stride: Any


class Loop:
    """Builds the instructions of one function: an array argument is its first number, as a pointer."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> None:
        self.builder = builder
        self.width: Any = None
        self.arguments: list[Any] = []
        for kind, value in zip(signature.args, arguments):
            if isinstance(kind, types.Array):
                array = make_array(kind)(context, builder, value)
                self.arguments.append(array.data)
                if kind.ndim == 2:
                    self.width = cgutils.unpack_tuple(builder, array.shape)[1]
                if isinstance(kind.dtype, types.Float):
                    self.number = context.get_data_type(kind.dtype)
                    self.lanes = _VECTOR_BYTES * 8 // kind.dtype.bitwidth
            else:
                self.arguments.append(context.cast(builder, value, kind, types.intp))

    @contextmanager
    def counted(self, first: Any, last: Any, step: int = 1) -> Iterator[Any]:
        """Build a loop."""
        with cgutils.for_range_slice(self.builder, first, last, self.whole(step), first.type) as (i, _):
            yield i

    def whole(self, number: int) -> Any:
        """Return a constant."""
        return ir.Constant(ir.IntType(_integer.bitwidth), number)

    def over_channels(
        self, channels: Any, most: int, work: Callable[[Any, Any, int], None], lanes: int | None = None
    ) -> None:
        """Build loops over channels: ``work(first, vector, count)`` for as many vectors at a time, at most.

        What is left at the end is done one channel at a time. Vectors have all lanes unless said otherwise.
        """
        lanes = lanes or self.lanes
        first, vector = self.whole(0), ir.VectorType(self.number, lanes)
        kinds = ((vector, most, most * lanes), (vector, 1, lanes), (self.number, 1, 1))
        for kind, count, step in kinds:
            left = self.builder.sub(channels, first)
            rest = self.builder.srem(left, self.whole(step))
            last = self.builder.sub(channels, rest)
            with self.counted(first, last, step) as c:
                work(c, kind, count)
            first = last

    def start_of(self, index: Any, entry: Any) -> Any:
        """Return where in a table the row of an entry begins."""
        return self.builder.mul(self.index(index, entry), self.width)

    def index(self, array: Any, at: Any) -> Any:
        """Return a number of an array of int32."""
        return self.builder.sext(self.builder.load(self.builder.gep(array, [at])), self.whole(0).type)

    def place(self, pointer: Any, at: Any, kind: Any, number: int = 0) -> Any:
        """Return a pointer to the n-th vector, or single number, behind ``at``."""
        at = self.builder.add(at, self.whole(number * (kind.count if isinstance(kind, ir.VectorType) else 1)))
        return self.builder.bitcast(self.builder.gep(pointer, [at]), kind.as_pointer())

    def load(self, pointer: Any) -> Any:
        """Read from where :meth:`place` says."""
        return self.builder.load(pointer, align=_VECTOR_BYTES // self.lanes)

    def store(self, value: Any, pointer: Any) -> None:
        """Write there."""
        self.builder.store(value, pointer, align=_VECTOR_BYTES // self.lanes)

    def fill(self, number: Any, kind: Any) -> Any:
        """Return a vector of equal numbers, or the number."""
        if not isinstance(kind, ir.VectorType):
            return number
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), mask)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Return a b + c."""
        return self.builder.fadd(self.builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)

    def sum_each(self, vectors: Sequence[Any]) -> Any:
        """Return a vector of the sums of four vectors of half the lanes each, or of four numbers."""
        if not isinstance(vectors[0].type, ir.VectorType):
            found = ir.Constant(ir.VectorType(self.number, len(vectors)), ir.Undefined)
            for i, number in enumerate(vectors):
                found = self.builder.insert_element(found, number, ir.IntType(32)(i))
            return found
        lanes = vectors[0].type.count
        part = lanes // 2  # registers are made of halves, between which numbers are moved last
        step = part
        while step > 1:  # neighbours are added, those of two vectors side by side
            step //= 2
            pairs = zip(vectors[0::2], vectors[1::2])
            even = [half + of + i for half in (0, part) for of in (0, lanes) for i in range(0, part, 2)]
            vectors = [self._added(a, b, even, [i + 1 for i in even]) for a, b in pairs]
        low = [of + i for of in range(0, len(vectors) * lanes, lanes) for i in range(part)]
        return self._added(vectors[0], vectors[-1], low, [i + part for i in low])

    def _added(self, a: Any, b: Any, first: list[int], second: list[int]) -> Any:
        """Return the sum of two choices of the numbers of two vectors."""
        return self.builder.fadd(self.shuffle(a, b, first), self.shuffle(a, b, second))

    def shuffle(self, a: Any, b: Any, order: Sequence[int]) -> Any:
        """Return a vector of numbers of two: those of the second are counted from where the first ends."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order))
        return self.builder.shuffle_vector(a, b, mask)


@intrinsic
def power_of_two(typing: Any, exponent: Any) -> Any:
    """Return 2 ** exponent, of a whole number within the range of its dtype."""
    bits, fraction, bias = (32, 23, 127) if exponent == types.float32 else (64, 52, 1023)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(bits)
        whole = builder.add(builder.fptosi(arguments[0], integer), ir.Constant(integer, bias))
        shifted = builder.shl(whole, ir.Constant(integer, fraction))
        return builder.bitcast(shifted, arguments[0].type)

    return exponent(exponent), build


@intrinsic
def copy_four(typing: Any, array: Any, source: Any, target: Any) -> Any:
    """Copy four numbers that follow each other to another place of their contiguous array (n,)."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        (data, source, target), number = loop.arguments, context.get_data_type(signature.args[0].dtype)
        loop.lanes = _VECTOR_BYTES * 8 // signature.args[0].dtype.bitwidth
        kind = ir.VectorType(number, 4)
        loop.store(loop.load(loop.place(data, source, kind)), loop.place(data, target, kind))
        return context.get_dummy_value()

    return nothing(array, source, target), build


@intrinsic
def copy_rows(typing: Any, numbers: Any, into: Any) -> Any:
    """Copy the contiguous rows of a matrix to those of another, (m, n), which it does not overlap."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        loop = Loop(context, builder, signature, arguments)
        of, into = (matrix(context, builder, *pair) for pair in zip(signature.args, arguments))

        def work(c: Any, kind: Any, count: int) -> None:
            with loop.counted(loop.whole(0), of.rows) as row:
                places = [builder.add(builder.mul(row, m.row_stride), c) for m in (of, into)]
                value = loop.load(loop.place(of.data, places[0], kind))
                loop.store(value, loop.place(into.data, places[1], kind))

        loop.over_channels(of.columns, 1, work)

    return shared("copy_rows", build, numbers, into)


@intrinsic
def prefetch(typing: Any, numbers: Any) -> Any:
    """Ask for a matrix (m, n), whose rows are contiguous, to be brought to a near cache."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, signature, arguments)
        of, byte, number = (
            matrix(context, builder, signature.args[0], arguments[0]),
            ir.IntType(8),
            ir.IntType(32),
        )
        arguments = [byte.as_pointer(), number, number, number]
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte.as_pointer()], ir.FunctionType(ir.VoidType(), arguments)
        )
        lanes = _VECTOR_BYTES * 8 // signature.args[0].dtype.bitwidth
        with loop.counted(loop.whole(0), of.rows) as row, loop.counted(loop.whole(0), of.columns, lanes) as c:
            at = builder.gep(of.data, [builder.add(builder.mul(row, of.row_stride), c)])
            builder.call(function, [builder.bitcast(at, byte.as_pointer()), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return nothing(numbers), build


def nothing(*arguments: Any) -> Any:
    """Return the signature of a function of these arguments that returns nothing."""
    return types.void(*arguments)


def shared(name: str, build: Any, *arguments: Any) -> Any:
    """Return what an intrinsic returns, for one function of that name that all of its calls share.

    Each would have its own copy otherwise: to compile loops at every place where they are called takes most
    of the time that it takes to compile anything here.

    Args:
        name: of the intrinsic.
        build: builds its instructions, and returns nothing.
        arguments: the types of its arguments, which are arrays; how these lie in memory makes no difference.
    """

    def call(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = [kind.copy(layout="A") for kind in signature.args]
        full_name = f"acla_nas.{name}({', '.join(map(str, kinds))})"
        function = builder.module.globals.get(full_name)
        if function is None:
            of_arguments = [context.get_value_type(kind) for kind in kinds]
            function_type = ir.FunctionType(ir.VoidType(), of_arguments)
            function = ir.Function(builder.module, function_type, full_name)
            function.linkage = "linkonce_odr"  # of those of several modules, one is kept
            function.attributes.add("noinline")
            inner = ir.IRBuilder(function.append_basic_block())
            build(context, inner, types.void(*kinds), function.args)
            inner.ret_void()
        builder.call(function, values)
        return context.get_dummy_value()

    return nothing(*arguments), call


def length(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Return the first dimension of an array."""
    array = make_array(kind)(context, builder, value)
    return cgutils.unpack_tuple(builder, array.shape)[0]


def matrix(context: Any, builder: Any, kind: Any, value: Any) -> Matrix:
    """Return a 2-dimensional array."""
    array = make_array(kind)(context, builder, value)
    size = ir.Constant(ir.IntType(_integer.bitwidth), kind.dtype.bitwidth // 8)
    strides = [builder.sdiv(stride, size) for stride in cgutils.unpack_tuple(builder, array.strides)]
    return Matrix(array.data, *cgutils.unpack_tuple(builder, array.shape), *strides)
