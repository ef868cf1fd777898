"""Timing of functions that take turns on a device, and the name of that device."""

from __future__ import annotations

import functools
import math
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from acla_nas.errors import AclaError

_Name = TypeVar("_Name", bound=Hashable)
_FEWEST, _PRECISE = 7, 0.02
_BEYOND_CACHES = 1 << 28  # floats, more than any GPU's caches hold


class Timing(NamedTuple):
    """The time of one run.

    Attributes:
        median_ms: over all runs, in milliseconds.
        error_ms: half of the 95 % interval of that median.
        runs: how many there were.
    """

    median_ms: float
    error_ms: float
    runs: int


def time_in_turns(
    calls: Mapping[_Name, Callable[[], object]],
    device: torch.device,
    runs: int,
    *,
    warm_up: int = 3,
    cold: bool = False,
) -> dict[_Name, Timing]:
    """Return the time of one run of each function, without gradients.

    The functions take turns, so that all meet the same other load, after a few rounds that do not count.

    Args:
        calls: name -> function.
        device: on which the functions compute; a GPU is timed by its own events.
        runs: of each function at most; fewer, but 7 at least, once every median is known to 2 %.
        warm_up: rounds that do not count.
        cold: whether a GPU reads other data before each run, so that what a function reads comes from memory
            and not from the caches. Meanwhile the function is launched: a launch that takes less than that
            reading, about a millisecond, is not in its time.

    Raises:
        AclaError: a time that is not above 0, from which nothing can be learnt.

    Example:
        >>> timings = time_in_turns({"sort": lambda: sorted(range(999))}, torch.device("cpu"), 7)
        >>> timings["sort"].runs
        7
    """
    clock: Callable[[Callable[[], object]], float] = _time
    if device.type == "cuda":
        clock = _time_on_gpu
        if cold:
            clock = functools.partial(_time_on_gpu, other=torch.zeros(_BEYOND_CACHES, device=device))
    times: dict[_Name, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for run in range(warm_up + runs):
            for name, call in calls.items():
                elapsed = clock(call)
                if run >= warm_up:
                    times[name].append(elapsed)
            if run >= warm_up + _FEWEST - 1:
                timings = {name: _summary(own) for name, own in times.items()}
                if all(timing.error_ms <= _PRECISE * timing.median_ms for timing in timings.values()):
                    break
    timings = {name: _summary(own) for name, own in times.items()}
    for timing in timings.values():
        if not (timing.median_ms > 0 and math.isfinite(timing.median_ms)):
            raise AclaError(f"a run took {timing.median_ms} ms by the clock, which must be above 0")
    return timings


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _time_on_gpu(call: Callable[[], object], other: torch.Tensor | None = None) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if other is not None:
        for _ in range(4):
            other.sum()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _summary(times: list[float]) -> Timing:
    """Return the median and its interval, which is that of order statistics: no distribution is assumed."""
    ordered, count = sorted(times), len(times)
    reach = 0.98 * math.sqrt(count)  # 1.96 standard deviations of the number of runs below the median
    low = max(0, math.floor((count - 1) / 2 - reach))
    high = min(count - 1, math.ceil((count - 1) / 2 + reach))
    return Timing(statistics.median(ordered), (ordered[high] - ordered[low]) / 2, count)


def device_name(device: torch.device) -> str:
    """Return what a device is called, such as "NVIDIA H100 PCIe" or "AMD EPYC 7763".

    >>> device_name(torch.device("cpu")) != ""
    True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine() or "CPU")
