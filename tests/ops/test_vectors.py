"""Powers of two from their bits."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.ops.jit import jit
from acla_nas.ops.vectors import power_of_two


@jit()
def _powers(exponents):
    for i in range(len(exponents)):
        exponents[i] = power_of_two(exponents[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_powers_of_two_are_exact(dtype):
    exponents = np.arange(-126, 128).astype(dtype)
    expected = np.exp2(exponents)
    _powers(exponents)
    np.testing.assert_array_equal(exponents, expected)
