"""open_key_shares: how many of their keys the adaptive modules that are run leave open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_OPEN_SHARES: ContextVar[list[Tensor] | None] = ContextVar("open_shares", default=None)
_COUNTING: list[object] = []  # one for each open_key_shares that is entered: torch.compile can look here


@contextmanager
def open_key_shares() -> Iterator[list[Tensor]]:
    """Within it, every adaptive module that is run adds the share of its keys that are open to the list.

    The shares are scalars in 0 .. 1, in training with gradients in the masks: for who trains under a cost of
    keys, or wants to know how many are left.

    Example:
        >>> import torch
        >>> from acla_nas.attention import ACLA
        >>> attention = ACLA(8, num_keys=4)
        >>> x = torch.randn(1, 8, 6, 6)
        >>> with open_key_shares() as shares:
        ...     update = attention(x, {"1": x})
        >>> [share.item() for share in shares]
        [1.0]
    """
    shares: list[Tensor] = []
    token = _OPEN_SHARES.set(shares)
    _COUNTING.append(token)
    try:
        yield shares
    finally:
        _COUNTING.remove(token)
        _OPEN_SHARES.reset(token)


def count_open_keys(share: Tensor) -> None:
    """Add a share of open keys to the list of the innermost :func:`open_key_shares`, if there is one."""
    shares = _counted()
    if shares is not None:
        shares.append(share)


def are_open_keys_counted() -> bool:
    """Whether there is one."""
    return _counted() is not None


def _counted() -> list[Tensor] | None:
    return _OPEN_SHARES.get() if _COUNTING else None
