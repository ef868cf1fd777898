"""Memory of what is measured: its peak, in a fresh process, and keeping what is freed."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_PROCESS_STATUS = Path("/proc/self/status")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


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


def keep_freed_memory() -> None:
    """Keep for this process what it frees, where the C library can (glibc does).

    Functions that take turns need different amounts, and what one frees would go back to the system and be
    fetched by the next, page by page. Who calls one function again and again, as a training does, uses its
    memory again, and so do functions that take turns after this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # bytes, the most that it takes
