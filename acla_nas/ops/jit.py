"""Loops over pixels and keys as machine code, compiled by Numba when they are first called.

Their threads are PyTorch's where both use the same OpenMP, as on Linux: threads of two libraries would wait
for each other. Sums may be reordered by the compiler, but are the same from run to run on one machine.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, cast

import numba
import torch
from numba.core import event

_F = TypeVar("_F", bound=Callable[..., Any])

_config: Any = numba.config  # whose names are made when it is read
_config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
# Not nnan and ninf: what is not finite stays so, and clamping it to an image stays possible.
_OPTIONS: dict[str, Any] = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
    "nogil": True,
}
_process = os.getpid()  # in which Numba's threads may run


def jit(*, parallel: bool = False) -> Callable[[_F], _F]:
    """Compile a function at its first call, and keep the code on disk where Numba finds a place for it.

    Args:
        parallel: run its ``numba.prange`` in as many threads as PyTorch has, see :func:`share_threads`. Such
            a function is called from Python only.

    Example:
        >>> @jit()
        ... def double(x):
        ...     return 2 * x
        >>> double(21)
        42
    """

    def decorate(function: _F) -> _F:
        compiled = _compile(_named(function, _sources()), parallel)
        if not parallel:
            return cast(_F, compiled)
        alone = _compile(_named(function, f"alone_{_sources()}"), False)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return (alone if _is_forked() else compiled)(*arguments)

        return cast(_F, call)

    return decorate


def _compile(function: Callable[..., Any], parallel: bool) -> Callable[..., Any]:
    options: dict[str, Any] = {**_OPTIONS, "parallel": parallel}
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to, or no file to read from
        compiled = numba.njit(**options)(function)
    return compiled


def _named(function: Callable[..., Any], suffix: str) -> Callable[..., Any]:
    """Return the same function under another name, by which Numba tells its files on disk from others."""
    assert isinstance(function, FunctionType)
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__module__, copy.__qualname__ = function.__module__, f"{function.__qualname__}_{suffix}"
    return copy


@functools.cache
def _sources() -> str:
    """Return a digest of all code that loops are made of.

    Numba compiles a function anew where its own file was changed, not where that of one it calls was.
    """
    package = Path(__file__).parent.parent
    files = sorted(file for folder in ("attention", "ops") for file in (package / folder).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


class _Notice(event.Listener):
    """Says once, on a terminal, what a first call waits for."""

    is_given = False

    def on_start(self, compiling: Any) -> None:
        is_own = compiling.data["dispatcher"].py_func.__qualname__.endswith(_sources())
        if is_own and not self.is_given and sys.stderr and sys.stderr.isatty():
            self.is_given = True
            print("acla_nas: compiling loops for this processor: a minute, once", file=sys.stderr)

    def on_end(self, compiling: Any) -> None:
        """Say nothing."""


_notice = _Notice()
event.register("numba:compile", _notice)


def share_threads() -> int:
    """Let loops that are called from now on use as many threads as PyTorch does, and return their number.

    It is 1 in a process that was forked after this module was loaded, as threads do not outlive a fork.
    """
    if _is_forked():
        return 1
    threads = torch.get_num_threads()
    count = min(threads, _config.NUMBA_NUM_THREADS)
    if numba.get_num_threads() != count:
        numba.set_num_threads(count)
    if torch.get_num_threads() != threads:  # at its first call Numba sets the number that PyTorch uses, too
        torch.set_num_threads(threads)
    return count


def _is_forked() -> bool:
    return os.getpid() != _process
