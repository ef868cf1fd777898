"""Loops over pixels and keys as machine code, compiled by Numba when they are first called.

Their threads are PyTorch's where both use the same OpenMP, as on Linux: threads of two libraries would wait
for each other. Sums may be reordered by the compiler, but are the same from run to run on one machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import torch

_F = TypeVar("_F", bound=Callable[..., Any])

numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
# Not nnan and ninf: what is not finite stays so, and clamping it to an image stays possible.
_OPTIONS = {"fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy", "nogil": True}


def jit(*, parallel: bool = False, inline: bool = False) -> Callable[[_F], _F]:
    """Compile a function at its first call, and keep the code on disk where Numba finds a place for it.

    Args:
        parallel: run its ``numba.prange`` in as many threads as PyTorch has, see :func:`share_threads`.
        inline: into those that call it.

    Example:
        >>> @jit()
        ... def double(x):
        ...     return 2 * x
        >>> double(21)
        42
    """
    options = {**_OPTIONS, "parallel": parallel, "inline": "always" if inline else "never"}

    def decorate(function: _F) -> _F:
        try:
            compiled: _F = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to write to, or no file to read from
            compiled = numba.njit(**options)(function)
        return compiled

    return decorate


def share_threads() -> int:
    """Let loops that are called from now on use as many threads as PyTorch does, and return their number."""
    count = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    return count
