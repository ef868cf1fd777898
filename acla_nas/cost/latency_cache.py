"""The file of a device's measured times, so that nothing is measured twice."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping

from acla_nas.cache_folder import cache_folder
from acla_nas.cost.timing import Timing
from acla_nas.durable import write_text
from acla_nas.errors import AclaError, AclaWarning


class LatencyCache:
    """Times by what they depend on, in memory and in ``latency/<device>.json`` of the cache folder.

    A file that cannot be read or written is warned of, and done without.

    Args:
        device: the name of the device.
        on_disk: False to keep the times in memory only.
    """

    def __init__(self, device: str, *, on_disk: bool = True) -> None:
        self.device = device
        name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-").lower() or "device"
        self.path = cache_folder() / "latency" / f"{name}.json" if on_disk else None
        self._times: dict[str, Timing] = self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._times

    def get(self, key: str) -> Timing:
        """Return the time under a key, which is JSON."""
        return self._times[key]

    def add(self, timings: Mapping[str, Timing]) -> None:
        """Keep times, beside those that other processes have written by now."""
        self._times = {**self._read(), **self._times, **timings}
        if self.path is None:
            return
        entries = [{**json.loads(key), **timing._asdict()} for key, timing in self._times.items()]
        content = {"device": self.device, "entries": entries}
        try:
            write_text(self.path, json.dumps(content, indent=1) + "\n")
        except AclaError as error:
            warnings.warn(
                f"cannot write the measured latencies to {self.path}: {error.__cause__}; set ACLA_NAS_CACHE "
                "to a folder of yours, or they are measured again each time",
                AclaWarning,
                stacklevel=2,
            )

    def _read(self) -> dict[str, Timing]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["device"] != self.device:
                raise ValueError(f"it is of {content['device']}")
            return dict(map(_parse, content["entries"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            warnings.warn(
                f"cannot read the measured latencies in {self.path} ({type(error).__name__}: {error}): "
                "measuring anew, and replacing the file",
                AclaWarning,
                stacklevel=2,
            )
            return {}


def _parse(entry: dict[str, object]) -> tuple[str, Timing]:
    timing = Timing(*(entry.pop(name) for name in Timing._fields))  # type: ignore[arg-type]
    for ms in (timing.median_ms, timing.error_ms):
        if not (math.isfinite(ms) and ms >= 0):
            raise ValueError(f"{ms} ms")
    if timing.median_ms == 0:
        raise ValueError("0 ms")
    return json.dumps(entry, sort_keys=True), timing
