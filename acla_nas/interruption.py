"""Ending a run between two of its steps when SIGINT or SIGTERM asks it to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A run ended because a signal asked it to; the same command goes on with it.

    Args:
        signum: the signal.
        what: what it had done, and what of it is kept.
    """

    def __init__(self, signum: int, what: str) -> None:
        super().__init__(what)
        self.signum = signum


_asked: int | None = None
_process: int | None = None  # that is stoppable, and not those forked from it


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a first SIGINT or SIGTERM ask for the end, see :func:`stop_if_asked`; a second one interrupts.

    Outside the main thread, where Python has no signals, nothing changes; it may be nested.
    """
    global _asked, _process
    if _process == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    _asked, _process = None, os.getpid()
    install_handlers()
    try:
        yield
    except SystemExit:  # what Lightning makes of a signal that comes before its training has begun
        stop_if_asked("stopped")
        raise
    finally:
        _process = None
        for signum, handler in before.items():
            signal.signal(signum, handler)


def install_handlers() -> None:
    """Within :func:`stoppable`, take the signals back from whoever else has taken them, as Lightning does."""
    if _process == os.getpid() and threading.current_thread() is threading.main_thread():
        for signum in _SIGNALS:
            signal.signal(signum, _ask)


def asked() -> int | None:
    """Return the signal that has asked for the end, if one has."""
    return _asked if _process == os.getpid() else None


def stop_if_asked(what: str) -> None:
    """Raise Stopped if a signal has asked for the end; `what` says what is done and kept."""
    signum = asked()
    if signum is not None:
        raise Stopped(signum, what)


def _ask(signum: int, _: Any) -> None:
    global _asked
    if _process != os.getpid():  # a worker that loads data: its parent will end it
        if signum == signal.SIGTERM:
            os._exit(128 + signum)
        return
    if _asked is not None:
        raise KeyboardInterrupt
    _asked = signum
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"acla-nas: stopping after this step; once more to stop at once\n")
