"""Sums of rows, and products with them, in vectors: what NumPy says, for channels that fill these or not."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.rows import add_rows, add_to_cells, multiply_rows

every_dtype = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
every_width = pytest.mark.parametrize("channels", [1, 5, 16, 64, 70, 150])


@jit()
def _add_rows(table, index, factor, first, last, into):
    add_rows(table, index, factor, first, last, into)


@jit()
def _add_to_cells(table, runs, order, row, index, factor, given):
    add_to_cells(table, runs, order, row, index, factor, given)


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
def test_rows_are_added_to_four_others_each(channels, dtype, tolerance):
    random = np.random.default_rng(1)
    table, given = (random.standard_normal((n, channels)).astype(dtype) for n in (9, 5))
    corners = np.array([[0, 1, 3, 4], [4, 4, 7, 7], [1, 2, 4, 5]], np.int32)  # one row twice: it gets both
    cell, row = random.integers(0, 3, 20), random.integers(0, 5, 20).astype(np.int32)
    index, factor = corners[cell].ravel(), random.standard_normal(80).astype(dtype)
    order = np.argsort(cell, kind="stable").astype(np.int32)
    runs = np.searchsorted(cell[order], np.arange(4)).astype(np.int32)
    expected = table.copy()
    np.add.at(expected, index, factor[:, None] * np.repeat(given[row], 4, axis=0))
    _add_to_cells(table, runs, order, row, index, factor, given)
    np.testing.assert_allclose(table, expected, rtol=tolerance, atol=20 * tolerance)


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
