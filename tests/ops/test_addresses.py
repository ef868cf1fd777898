"""Tensors that compiled loops find by their addresses."""

from __future__ import annotations

import pytest
import torch

from acla_nas.errors import AclaError
from acla_nas.ops.addresses import addresses, matrix_at
from acla_nas.ops.jit import jit


@jit()
def _double(starts, rows, columns, like):
    for start in starts:
        matrix_at(start, rows, columns, like)[:] *= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_are_found_and_written_in_place(dtype):
    tensors = [torch.arange(6, dtype=dtype), torch.ones(2, 3, dtype=dtype)]
    expected = [2 * tensor for tensor in tensors]
    _double(addresses(tensors, [6, 6], dtype), 2, 3, tensors[0].numpy())
    assert all(torch.equal(x, y) for x, y in zip(tensors, expected))


@pytest.mark.parametrize("wrong", [torch.zeros(5), torch.zeros(6, dtype=torch.float64)])
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(AclaError, match=r"where 6 numbers of torch.float32 belong"):
        addresses([torch.zeros(6), wrong], [6, 6], torch.float32)
