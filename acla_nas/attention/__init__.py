"""What can be inserted after a position: cross-layer attention and its adaptive form."""

from __future__ import annotations

from collections.abc import Callable

from acla_nas.attention.acla import ACLA, cla
from acla_nas.attention.attention import Attention, Feature
from acla_nas.errors import unknown_name

__all__ = ["ACLA", "Attention", "Feature", "cla", "get", "names", "register"]

_REGISTRY: dict[str, Callable[..., Attention]] = {"acla": ACLA, "cla": cla}


def register(name: str, make: Callable[..., Attention]) -> None:
    """Make ``make(channels, num_keys, reference_channels=..., **options)`` known under a name."""
    _REGISTRY[name] = make


def get(name: str) -> Callable[..., Attention]:
    """Return what makes the attention of that name; raises AclaError for an unknown one."""
    if name not in _REGISTRY:
        raise unknown_name("attention", name, _REGISTRY)
    return _REGISTRY[name]


def names() -> list[str]:
    """Return the names of all attention modules, sorted."""
    return sorted(_REGISTRY)
