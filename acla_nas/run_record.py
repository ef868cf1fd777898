"""What a run folder says of the run itself: the command, versions, seed and device, and all that it said."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from acla_nas._version import __version__
from acla_nas.durable import write_text

RECORD, LOG = "run.json", "log.txt"
_PACKAGES = ("torch", "nni", "pytorch-lightning", "numpy", "optuna")
_logs: list[Path] = []  # of the runs that are under way, the innermost last


def say(line: str) -> None:
    """Print a line at once; within a run that is recorded, also add it to the log.

    Example:
        >>> say("searching 6 positions")
        searching 6 positions
    """
    print(line, flush=True)
    if _logs:
        with _logs[-1].open("a", encoding="utf-8") as log:
            log.write(f"{_now()}  {line}\n")


@contextmanager
def recorded(folder: str | Path, *, seed: int, device: str, resumed: bool = False) -> Iterator[None]:
    """Within it a run is under way in a folder: run.json says how it was made, log.txt what it said.

    ``run.json`` has an entry in ``commands`` for each time that the run was started, with its end:
    "finished", or the error or interrupt that ended it, or null where the process was killed.

    Args:
        folder: of the run, which exists.
        seed: of the run.
        device: "cpu" or "cuda".
        resumed: does it go on with what an earlier command began?

    Example:
        >>> with recorded(".", seed=0, device="cpu"):
        ...     say("at work")
        at work
        >>> load_record(".")["commands"][0]["end"]
        'finished'
    """
    folder = Path(folder)
    log = folder / LOG
    before = load_record(folder).get("commands", []) if resumed else []
    if not before:
        log.unlink(missing_ok=True)
    command: dict[str, Any] = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "started": _now(),
        "ended": None,
        "end": None,
    }
    record = {
        "commands": [*before, command],
        "seed": seed,
        "device": _device(device),
        "versions": {
            "acla-nas": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "platform": platform.platform(),
    }
    _write(record, folder)
    _logs.append(log)
    try:
        yield
        command["end"] = "finished"
    except BaseException as error:
        command["end"] = f"{type(error).__name__}: {error}".rstrip(": ")
        raise
    finally:
        _logs.pop()
        command["ended"] = _now()
        _write(record, folder)


def load_record(folder: str | Path) -> dict[str, Any]:
    """Return what run.json in a folder holds; nothing where there is none."""
    try:
        record = json.loads(Path(folder, RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(record: dict[str, Any], folder: Path) -> None:
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _device(device: str) -> str:
    if device == "cuda":
        return f"cuda ({torch.cuda.get_device_name()})"
    return f"{device} ({torch.get_num_threads()} threads)"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
