"""One run at a time writes into a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from acla_nas.durable import PARTIAL, make_run_folder
from acla_nas.errors import AclaError

# Seconds. A run that was killed may leave workers that load data, which share its lock; they notice within 5.
_PATIENCE = 8.0

_locks: dict[Path, FileLock] = {}


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other processes out of a run folder, made if missing; within one process it may be nested.

    The system lifts the lock when the process ends, however it ends; the file ``.lock`` stays. Files that a
    process was killed over while it wrote them are removed.

    Raises:
        AclaError: another process has it, or there can be no lock in that folder.
    """
    folder = make_run_folder(folder)
    try:
        lock = _locks.setdefault(folder.resolve(), FileLock(folder.resolve() / ".lock"))
        held = lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise AclaError(
            f"run folder {folder} is in use by another run: wait for its end, or set run=DIR"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AclaError(f"cannot lock run folder {folder}: {reason}; set run=DIR") from None
    with held:
        for partial in folder.glob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        yield
