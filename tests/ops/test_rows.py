"""Sums of rows, and products with them, in vectors: what NumPy says, for channels that fill these or not."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.rows import add_rows, add_to_rows, multiply_rows

every_dtype = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
every_width = pytest.mark.parametrize("channels", [1, 5, 16, 64, 70, 150])


@jit()
def _add_rows(table, index, factor, first, last, into):
    add_rows(table, index, factor, first, last, into)


@jit()
def _add_to_rows(table, index, factor, first, last, given):
    add_to_rows(table, index, factor, first, last, given)


@jit()
def _multiply_rows(table, index, given, first, last, into):
    multiply_rows(table, index, given, first, last, into)


@every_dtype
@every_width
def test_sums_of_rows(channels, dtype, tolerance):
    random = np.random.default_rng(0)
    table = random.standard_normal((9, channels + 3)).astype(dtype)
    index = random.integers(0, 9, 40).astype(np.int32)
    factor, into = random.standard_normal(40).astype(dtype), random.standard_normal(channels).astype(dtype)
    expected = into + factor[3:30] @ table[index[3:30], :channels]
    _add_rows(table, index, factor, 3, 30, into)
    np.testing.assert_allclose(into, expected, rtol=tolerance, atol=tolerance)


@every_dtype
@every_width
def test_a_row_that_is_named_twice_gets_both(channels, dtype, tolerance):
    random = np.random.default_rng(1)
    table = random.standard_normal((9, channels + 3)).astype(dtype)
    index = np.repeat(random.integers(0, 9, 20), 2).astype(np.int32)
    factor, given = random.standard_normal(40).astype(dtype), random.standard_normal(channels).astype(dtype)
    expected = table.copy()
    np.add.at(expected[:, :channels], index[3:30], factor[3:30, None] * given)
    _add_to_rows(table, index, factor, 3, 30, given)
    np.testing.assert_allclose(table, expected, rtol=tolerance, atol=tolerance)


@every_dtype
@every_width
def test_products_with_rows(channels, dtype, tolerance):
    random = np.random.default_rng(2)
    table = random.standard_normal((9, channels + 3)).astype(dtype)
    index = random.integers(0, 9, 40).astype(np.int32)
    given, into = random.standard_normal(channels).astype(dtype), np.full(40, 7, dtype)
    _multiply_rows(table, index, given, 4, 32, into)
    expected = table[index[4:32], :channels] @ given
    np.testing.assert_allclose(into[4:32], expected, rtol=tolerance, atol=channels * tolerance)
    assert (into[:4] == 7).all() and (into[32:] == 7).all()
