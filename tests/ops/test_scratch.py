"""Scratch memory: kept from call to call, by each thread, unless it is huge."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from acla_nas.ops import scratch as module
from acla_nas.ops.scratch import scratch


def test_is_kept_and_grows():
    small = scratch("of a test", torch.float32, 4)
    large = scratch("of a test", torch.float32, 2, 50)
    assert large.shape == (2, 50) and large.is_contiguous()
    assert scratch("of a test", torch.float32, 3).data_ptr() == large.data_ptr() != small.data_ptr()
    assert scratch("of a test", torch.float64, 3).data_ptr() != large.data_ptr()


def test_each_thread_has_its_own():
    own = scratch("of a test", torch.float32, 4)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(scratch, "of a test", torch.float32, 4).result()
    assert others.data_ptr() != own.data_ptr()


def test_what_is_huge_is_given_back(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 400)
    kept = scratch("of another test", torch.float32, 100)
    huge = scratch("of another test", torch.float32, 101)
    assert huge.shape == (101,) and huge.data_ptr() != kept.data_ptr()
    assert scratch("of another test", torch.float32, 100).data_ptr() == kept.data_ptr()
    assert all(x.nbytes <= 400 for n, x in vars(module._memory).items() if n.startswith("of another"))
