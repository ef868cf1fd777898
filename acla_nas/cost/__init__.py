"""Pluggable cost models: what the modules that a search inserts cost."""

from __future__ import annotations

from collections.abc import Callable

from acla_nas.cost.cost_model import CostModel, CostTable
from acla_nas.cost.macs import MacsCost
from acla_nas.cost.paper import PaperCost
from acla_nas.errors import unknown_name

__all__ = ["CostModel", "CostTable", "MacsCost", "PaperCost", "get", "names", "register"]

_REGISTRY: dict[str, Callable[[], CostModel]] = {"macs": MacsCost, "paper": PaperCost}


def register(name: str, make: Callable[[], CostModel]) -> None:
    """Make a cost model known under a name.

    Example:
        >>> class ModuleCount(CostModel):
        ...     unit = "modules"
        ...     def own(self, attention, query):
        ...         return 1.0
        ...     def pair(self, attention, query, reference):
        ...         return 0.0
        >>> register("modules", ModuleCount)
        >>> get("modules").unit
        'modules'
    """
    _REGISTRY[name] = make


def get(name: str) -> CostModel:
    """Return the cost model of that name; raises AclaError for an unknown one."""
    if name not in _REGISTRY:
        raise unknown_name("cost model", name, _REGISTRY)
    return _REGISTRY[name]()


def names() -> list[str]:
    """Return the names of all cost models, sorted."""
    return sorted(_REGISTRY)
