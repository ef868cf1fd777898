"""Peak memory of a call, measured in a process that has done nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_PROCESS_STATUS = Path("/proc/self/status")


def can_measure() -> bool:
    """Whether the system says what a process's peak is (Linux does)."""
    return _PROCESS_STATUS.exists()


def peak_bytes() -> int:
    """Return the most memory that this process has had at a time."""
    lines = _PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return 1024 * int(peak)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module in a process of its own, whose peak is that of the call."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()
