"""Where the trials of a search are kept: in memory, in the run folder, or in the workers' database."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, RetryHeartbeatStaleTrialCallback

from acla_nas.errors import AclaError

FILE = "trials.db"  # in the run folder
_HEARTBEAT, _GRACE = 30, 120  # seconds between a worker's signs of life, and after which it is taken for dead
_RETRIES = 3  # of a trial whose worker died
_OPENINGS = 10  # of a database that several workers set up at once


def open_storage(url: str | None, folder: Path | None) -> BaseStorage:
    """Return the storage at an Optuna URL; or else the file of a run folder; or else memory.

    At a URL several workers may share a study: each gives signs of life, and a trial whose worker has given
    none for two minutes is scored by another. The run folder is one process's.

    Raises:
        AclaError: the storage cannot be opened.
    """
    if url is None and folder is None:
        return InMemoryStorage()
    with quiet_optuna():
        if url is None:
            assert folder is not None
            path = folder / FILE
            return _open(f"sqlite:///{path}", {"creator": lambda: _connect(path)})
        sqlite = url.startswith("sqlite")
        return _open(
            url,
            {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True},
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(_RETRIES),
        )


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file so that its many small writes do not wait for the disk, and a crash breaks nothing."""
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _open(url: str, engine: dict[str, Any], **heartbeat: Any) -> RDBStorage:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    for attempt in range(1, _OPENINGS + 1):
        try:
            return RDBStorage(url, dict(engine), **heartbeat)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
            # Workers that start together all find the tables missing, and all but one fail to make them.
            race = isinstance(error, (DBAPIError, optuna.exceptions.StorageInternalError))
            if attempt == _OPENINGS or not race:
                shown = make_url(url).render_as_string(hide_password=True) if "://" in url else repr(url)
                reason = str(error.__cause__ or error).splitlines()[0]
                raise AclaError(
                    f"cannot open storage {shown}: {reason}; give an Optuna storage URL, such as "
                    "sqlite:///trials.db or postgresql://user@host/database (pip install acla-nas[postgres])"
                ) from error
            time.sleep(0.1 * attempt)
    raise AssertionError("unreachable")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Within it, Optuna neither reports its trials, which we do, nor warns that something is experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
