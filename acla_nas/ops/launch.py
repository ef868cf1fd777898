"""Launches of Triton kernels: which compiled one is wanted is looked up by the values of the arguments.

Triton works that out anew in every launch, from each argument, which takes longer than a small kernel runs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_MOST = 4096  # compiled kernels that are remembered
_compiled: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
    """Launch a kernel.

    Args:
        kernel: a function under ``triton.jit``.
        grid: programs along each axis, three at most.
        arguments: of the kernel, in its order: tensors, numbers and tuples of them.
        num_warps: of a program.
        constants: its ``tl.constexpr`` arguments, all after the others, in its order.
    """
    key = (kernel, num_warps, *constants.values(), *map(_kind, arguments))
    known = _compiled.get(key)
    if known is None:
        known = kernel[grid](*arguments, **constants, num_warps=num_warps)
        if known is not None:  # as it is in the interpreter, which compiles nothing
            if len(_compiled) == _MOST:
                _compiled.clear()
            _compiled[key] = known
    else:
        known[(*grid, 1, 1)[:3]](*arguments, *constants.values())


def _kind(argument: Any) -> Any:
    """Return what of an argument a kernel is compiled for: more than that of a number, which is its value."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.get_device(), argument.data_ptr() % 16
    if isinstance(argument, tuple):
        return tuple(map(_kind, argument))
    return type(argument), argument
