"""Squares of planes: what a loop over keys says, with a plane for each key and with one for all."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.squares import add_to_squares, take_squares

WIDTH, HEIGHT = 7, 6


@jit()
def _take(planes, width, keys, cell, four):
    take_squares(planes, width, keys, cell, four)


@jit()
def _add(planes, width, keys, cell, share, factor):
    add_to_squares(planes, width, keys, cell, share, factor)


def _square(cell):
    return cell + np.array([0, 1, WIDTH, WIDTH + 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "keys", "number"), [(1, 1, 1), (6, 4, 4), (5, 3, 1), (9, 16, 16)])
def test_squares(count, keys, number, dtype):
    random = np.random.default_rng(0)
    planes = random.standard_normal((number, HEIGHT * WIDTH)).astype(dtype)
    cell = random.integers(0, (HEIGHT - 1) * WIDTH - 1, count * keys).astype(np.int32)
    four = np.zeros(4 * count * keys, dtype)
    _take(planes, WIDTH, keys, cell, four)
    owners = np.arange(count * keys) % keys % number
    np.testing.assert_array_equal(four.reshape(-1, 4), [planes[k, _square(c)] for k, c in zip(owners, cell)])

    share, factor = (random.standard_normal(n * count * keys).astype(dtype) for n in (4, 1))
    expected = planes.astype(np.float64)
    for k, c, shares, f in zip(owners, cell, share.reshape(-1, 4), factor):
        expected[k, _square(c)] += f * shares
    _add(planes, WIDTH, keys, cell, share, factor)
    np.testing.assert_allclose(planes, expected, rtol=1e-5, atol=1e-5)
