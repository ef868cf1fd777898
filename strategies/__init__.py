"""Search strategies, one a file, and the register that knows them by name."""

from __future__ import annotations

from collections.abc import Callable

from acla_nas.errors import unknown_name
from acla_nas.nni_nas import OneShotStrategy
from acla_nas.strategies.two_stage import TwoStage

__all__ = ["TwoStage", "get", "names", "register"]

_REGISTRY: dict[str, Callable[..., OneShotStrategy]] = {"two_stage": TwoStage}


def register(name: str, make: Callable[..., OneShotStrategy]) -> None:
    """Make a strategy known under a name."""
    _REGISTRY[name] = make


def get(name: str) -> Callable[..., OneShotStrategy]:
    """Return what makes the strategy of that name; raises AclaError for an unknown one."""
    if name not in _REGISTRY:
        raise unknown_name("strategy", name, _REGISTRY)
    return _REGISTRY[name]


def names() -> list[str]:
    """Return the names of all strategies, sorted."""
    return sorted(_REGISTRY)
