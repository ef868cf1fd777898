"""Sums of rows around keys, and products with them: what NumPy says, whether channels fill vectors or not."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.rows import add_rows, add_to_cells, multiply_rows

WIDTH, HEIGHT = 4, 5

every_dtype = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
every_number = pytest.mark.parametrize("channels", [1, 5, 16, 64, 70, 150])


@jit()
def _add_rows(table, width, index, factor, first, last, into):
    add_rows(table, width, index, factor, first, last, into)


@jit()
def _add_to_cells(table, width, runs, order, row, index, factor, given):
    add_to_cells(table, width, runs, order, row, index, factor, given)


@jit()
def _multiply_rows(table, width, index, given, first, last, into):
    multiply_rows(table, width, index, given, first, last, into)


def _around(index):
    """Return the four pixels around keys: (n, 4)."""
    return index[:, None] + np.array([0, 1, WIDTH, WIDTH + 1])


def _keys(random, count):
    return random.integers(0, (HEIGHT - 1) * WIDTH - 1, count).astype(np.int32)


@every_dtype
@every_number
def test_sums_of_rows(channels, dtype, tolerance):
    random = np.random.default_rng(0)
    table, into = (random.standard_normal(n).astype(dtype) for n in ((HEIGHT * WIDTH, channels), channels))
    index, factor = _keys(random, 12), random.standard_normal((12, 4)).astype(dtype)
    expected = into + np.einsum("nic,ni->c", table[_around(index[3:10])], factor[3:10])
    _add_rows(table, WIDTH, index, factor.ravel(), 3, 10, into)
    np.testing.assert_allclose(into, expected, rtol=tolerance, atol=10 * tolerance)


@every_dtype
@every_number
def test_rows_are_added_to_those_around_keys(channels, dtype, tolerance):
    random = np.random.default_rng(1)
    table, given = (random.standard_normal((n, channels)).astype(dtype) for n in (HEIGHT * WIDTH, 5))
    cells = np.array([0, 1, 5, 14])
    which, row = random.integers(0, 4, 20), random.integers(0, 5, 20).astype(np.int32)
    index, factor = cells[which].astype(np.int32), random.standard_normal((20, 4)).astype(dtype)
    order = np.argsort(which, kind="stable").astype(np.int32)
    runs = np.searchsorted(which[order], np.arange(5)).astype(np.int32)
    expected = table.copy()
    np.add.at(expected, _around(index), factor[:, :, None] * given[row][:, None])
    _add_to_cells(table, WIDTH, runs, order, row, index, factor.ravel(), given)
    np.testing.assert_allclose(table, expected, rtol=tolerance, atol=20 * tolerance)


@every_dtype
@every_number
def test_products_with_rows(channels, dtype, tolerance):
    random = np.random.default_rng(2)
    table, given = (random.standard_normal(n).astype(dtype) for n in ((HEIGHT * WIDTH, channels), channels))
    index, into = _keys(random, 10), np.full((10, 4), 7, dtype)
    _multiply_rows(table, WIDTH, index, given, 2, 8, into.reshape(-1))
    expected = table[_around(index[2:8])] @ given
    np.testing.assert_allclose(into[2:8], expected, rtol=tolerance, atol=channels * tolerance)
    assert (into[:2] == 7).all() and (into[8:] == 7).all()
