"""Any number of tensors for one call of a compiled loop, which finds them by the addresses of their data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from acla_nas.errors import AclaError
from acla_nas.ops.jit import jit
from acla_nas.ops.vectors import intrinsic


def addresses(tensors: Sequence[Tensor], sizes: Sequence[int], dtype: torch.dtype) -> Any:
    """Return where tensors begin, (n,) int64; they must be contiguous, and kept while this is used.

    Args:
        tensors: n of them, on the CPU, contiguous in whatever order of dimensions.
        sizes: how many numbers each must have.
        dtype: which they must have.

    Raises:
        AclaError: a tensor is not of its size and dtype.
    """
    for tensor, size in zip(tensors, sizes):
        if tensor.numel() != size or tensor.dtype != dtype:
            raise AclaError(
                f"a tensor {tuple(tensor.shape)} of {tensor.dtype} where {size} numbers of {dtype} belong"
            )
    return np.array([tensor.data_ptr() for tensor in tensors], np.int64)


@intrinsic
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to numbers of the dtype of an array."""
    kind = types.CPointer(like.dtype)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.intp, like), build


@jit()
def matrix_at(address, rows, columns, like):
    """Return the matrix that begins at an address, row by row, of the dtype of another array."""
    return numba.carray(_pointer(address, like), (rows, columns))
