"""Memory that is freed stays with a process that asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from acla_nas.bench.memory import can_measure, in_fresh_process, keep_freed_memory

MIB = 1 << 20


def resident():
    [pages] = Path("/proc/self/statm").read_text(encoding="ascii").split()[1:2]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def left_after_use(keep):
    """Return how much of 512 MiB a process still has that it filled and freed, in blocks of 16."""
    if keep:
        keep_freed_memory()
    before = resident()
    blocks = [torch.ones(4 * MIB) for _ in range(32)]
    del blocks
    return resident() - before


@pytest.mark.skipif(not can_measure(), reason="the system does not say what a process has")
def test_freed_memory_is_kept():
    assert in_fresh_process(left_after_use, False) < 128 * MIB
    assert in_fresh_process(left_after_use, True) > 384 * MIB
