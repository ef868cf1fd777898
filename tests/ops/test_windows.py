"""Windows around the keys of queries: what NumPy says of their pixels, and of sums over these."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.windows import add_shares, add_window, frame, multiply_window, room_of, take_products

WIDTH, HEIGHT = 13, 11

every_dtype = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
every_number = pytest.mark.parametrize("channels", [1, 5, 16, 64, 70, 150])
every_window = pytest.mark.parametrize(("columns", "rows"), [(2, 2), (3, 5), (7, 3)])


@jit()
def _frame(column, row, keys, limit, width, room, first, columns, count, place):
    frame(column, row, keys, limit, width, room, first, columns, count, place)


@jit()
def _add_shares(shares, keys, columns, place, share):
    add_shares(shares, keys, columns, place, share)


@jit()
def _take_products(products, keys, columns, place, four):
    take_products(products, keys, columns, place, four)


@jit()
def _add_window(table, width, first, columns, count, share, into):
    add_window(table, width, first, columns, count, share, into)


@jit()
def _multiply_window(table, width, first, columns, count, given, into):
    multiply_window(table, width, first, columns, count, given, into)


def _pixels(first, columns, rows):
    return (first + np.arange(rows)[:, None] * WIDTH + np.arange(columns)).ravel()


def _framed(column, row, limit):
    queries, keys = column.shape
    first, columns, count = np.zeros((3, queries), np.int32)
    place = np.zeros(queries * keys, np.int32)
    _frame(
        column.ravel(), row.ravel(), keys, limit, WIDTH, room_of(limit), first, columns, count, place
    )  # fmt: skip
    return first, columns, count, place


def _drawn(keys, queries=9):
    random = np.random.default_rng(keys)
    corner = random.integers(0, 5, (2, queries, 1))
    spread = random.integers(1, 6, (2, queries, 1))
    return (corner + random.integers(0, spread, (2, queries, keys))).astype(np.int32)


@pytest.mark.parametrize("keys", [1, 3, 16, 21, 32])
def test_frames(keys):
    column, row = _drawn(keys)
    across, down = (x.max(1) - x.min(1) + 2 for x in (column, row))
    limit = int(np.median(across * down))
    first, columns, count, place = _framed(column, row, limit)
    np.testing.assert_array_equal(first, row.min(1) * WIDTH + column.min(1))
    fits = across * down <= limit
    assert fits.any() and (keys == 1 or not fits.all())
    np.testing.assert_array_equal(columns, np.where(fits, across, 0))
    np.testing.assert_array_equal(count, np.where(fits, across * down, 0))
    beyond = (row - row.min(1, keepdims=True)) * across[:, None] + column - column.min(1, keepdims=True)
    expected = np.where(fits[:, None], beyond, 0) + np.arange(len(fits))[:, None] * room_of(limit)
    np.testing.assert_array_equal(place, expected.ravel())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_of_windows_are_taken_for_keys(dtype):
    column, row = _drawn(5)
    first, columns, count, place = _framed(column, row, 20)
    products = np.zeros((len(count), 20), dtype)
    for q, pixels in enumerate(count):
        products[q, :pixels] = _pixels(first[q], columns[q], pixels // max(columns[q], 1))
    four = np.full((*column.shape, 4), 7, dtype)
    _take_products(products.ravel(), 5, columns, place, four.reshape(-1))
    around = (row * WIDTH + column)[..., None] + np.array([0, 1, WIDTH, WIDTH + 1])
    np.testing.assert_array_equal(four, np.where((count > 0)[:, None, None], around, 7))


@every_dtype
def test_shares_of_keys_are_added_up_pixel_by_pixel(dtype, tolerance):
    keys, limit = 16, 20
    column, row = _drawn(keys)
    first, columns, count, place = _framed(column, row, limit)
    assert 0 < (count > 0).sum() < len(count)
    share = np.random.default_rng(0).standard_normal((*column.shape, 4)).astype(dtype)
    shares = np.zeros((len(count), room_of(limit)), dtype)
    _add_shares(shares.reshape(-1), keys, columns, place, share.ravel())
    for q, (found, pixels) in enumerate(zip(shares, count)):
        if pixels == 0:
            continue
        expected = np.zeros(HEIGHT * WIDTH)
        corners = (row[q] * WIDTH + column[q])[:, None] + np.array([0, 1, WIDTH, WIDTH + 1])
        np.add.at(expected, corners, share[q])
        of_window = _pixels(first[q], columns[q], pixels // columns[q])
        np.testing.assert_allclose(found[:pixels], expected[of_window], rtol=tolerance, atol=10 * tolerance)
        assert (found[pixels:] == 0).all()


@every_dtype
@every_number
@every_window
def test_rows_of_windows(columns, rows, channels, dtype, tolerance):
    random = np.random.default_rng(0)
    table = random.standard_normal((HEIGHT * WIDTH, channels)).astype(dtype)
    first, count = 2 * WIDTH + 3, columns * rows
    pixels, share = _pixels(first, columns, rows), random.standard_normal(count).astype(dtype)
    vector, given = random.standard_normal((2, channels)).astype(dtype)
    near = {"rtol": tolerance, "atol": 10 * tolerance}

    expected = vector + share @ table[pixels]
    _add_window(table, WIDTH, first, columns, count, share, vector)
    np.testing.assert_allclose(vector, expected, **near)

    products = np.zeros(room_of(count), dtype)
    _multiply_window(table, WIDTH, first, columns, count, given, products)
    np.testing.assert_allclose(
        products[:count], table[pixels] @ given, rtol=tolerance, atol=channels * tolerance
    )
