"""Transposition in vectors: what NumPy says, of any shapes and strides of rows."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.transposition import add_transposed, transpose


@jit()
def _transpose(a, into):
    transpose(a, into)


@jit()
def _add_transposed(a, into):
    add_transposed(a, into)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 5), (8, 8), (17, 29), (64, 48)])
def test_transposition(m, n, dtype):
    a = np.random.default_rng(0).standard_normal((2 * m, n + 3)).astype(dtype)[::2, 1 : n + 1]
    whole = np.full((n + 2, m + 4), 7, dtype)
    _transpose(a, whole[1:-1, 3:-1])
    np.testing.assert_array_equal(whole[1:-1, 3:-1], a.T)
    _add_transposed(a, whole[1:-1, 3:-1])
    np.testing.assert_array_equal(whole[1:-1, 3:-1], 2 * a.T)
    whole[1:-1, 3:-1] = 7
    assert (whole == 7).all()
