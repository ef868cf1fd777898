"""Products of matrices in vectors: what NumPy says, of any shapes and strides."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.products import add_product, multiply


@jit()
def _multiply(a, b, into):
    multiply(a, b, into)


@jit()
def _add_product(a, b, into):
    add_product(a, b, into)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (6, 3, 16), (5, 7, 4), (11, 20, 23), (13, 20, 23), (48, 64, 80)]
)
def test_products(m, k, n, dtype, tolerance):
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n)))
    into = np.full((m + 2, n), 7, dtype)
    _multiply(a, b, into[1:-1])
    np.testing.assert_allclose(into[1:-1], a @ b, rtol=tolerance, atol=k * tolerance)
    assert (into[[0, -1]] == 7).all()
    _add_product(a, b, into[1:-1])
    np.testing.assert_allclose(into[1:-1], 2 * (a @ b), rtol=tolerance, atol=2 * k * tolerance)
    assert (into[[0, -1]] == 7).all()


def test_matrices_that_are_part_of_others():
    random = np.random.default_rng(1)
    a, b = random.standard_normal((30, 40)), random.standard_normal((30, 50))
    into = np.zeros((40, 60))
    _multiply(a[3:20, 5:22].T, b[3:20, 7:38], into[2:19, 10:41])
    expected = np.zeros((40, 60))
    expected[2:19, 10:41] = a[3:20, 5:22].T @ b[3:20, 7:38]
    np.testing.assert_allclose(into, expected, atol=1e-13)
