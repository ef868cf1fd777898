"""Powers of two from their bits, and copies in vectors."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.vectors import copy_four, copy_rows, power_of_two, prefetch


@jit()
def _powers(exponents):
    for i in range(len(exponents)):
        exponents[i] = power_of_two(exponents[i])


@jit()
def _copy_four(array, source, target):
    copy_four(array, source, target)


@jit()
def _copy_rows(numbers, into):
    copy_rows(numbers, into)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_powers_of_two_are_exact(dtype):
    exponents = np.arange(-126, 128).astype(dtype)
    expected = np.ldexp(dtype(1), exponents.astype(int))  # exp2 is off by a rounding on some machines
    _powers(exponents)
    np.testing.assert_array_equal(exponents, expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_four_numbers_are_copied(dtype):
    array = np.arange(20).astype(dtype)
    _copy_four(array, 12, 1)
    np.testing.assert_array_equal(array, [0, 12, 13, 14, 15, *range(5, 20)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 16, 37])
def test_rows_are_copied(columns, dtype):
    numbers = np.random.default_rng(0).standard_normal((3, columns)).astype(dtype)
    whole = np.full((3, 2, columns + 2), 7, dtype)
    _copy_rows(numbers, whole[:, 1, :-2])
    np.testing.assert_array_equal(whole[:, 1, :-2], numbers)
    assert (whole[:, 0] == 7).all() and (whole[:, 1, -2:] == 7).all()


@numba.njit  # code that was kept on disk cannot be looked at
def _copy_twice(numbers, into, again):
    copy_rows(numbers, into[:, 1:])
    copy_rows(into[:, 1:], again)


def test_what_is_called_twice_is_compiled_once():
    numbers, again = np.arange(6.0).reshape(2, 3), np.empty((2, 3))
    _copy_twice(numbers, np.empty((2, 4)), again)
    np.testing.assert_array_equal(again, numbers)
    (code,) = _copy_twice.inspect_llvm().values()
    assert code.count('define linkonce_odr void @"acla_nas.copy_rows') == 1


@jit()
def _prefetch(numbers):
    prefetch(numbers)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_asked_for_stays_as_it_is(dtype):
    numbers = np.arange(700).astype(dtype).reshape(20, 35)
    expected = numbers.copy()
    _prefetch(numbers[3:9, 4:33])
    _prefetch(numbers[:, 35:])
    np.testing.assert_array_equal(numbers, expected)
