"""Pluggable cost models: what the modules that a search inserts cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from acla_nas.cost.cost_model import CostModel, CostTable
from acla_nas.cost.latency import LatencyCost
from acla_nas.cost.macs import MacsCost
from acla_nas.cost.paper import PaperCost
from acla_nas.cost.params import ParamsCost
from acla_nas.errors import AclaError
from acla_nas.registry import Registry

__all__ = [
    "CostModel",
    "CostTable",
    "LatencyCost",
    "MacsCost",
    "PaperCost",
    "ParamsCost",
    "get",
    "names",
    "register",
]


def _is_cost_model(part: object) -> bool:
    return issubclass(part, CostModel) if inspect.isclass(part) else inspect.isfunction(part)


REGISTRY: Registry[Callable[[], CostModel]] = Registry(
    "cost model",
    "acla_nas.cost",
    "a subclass of CostModel, or a function that returns one",
    _is_cost_model,
    {"latency": LatencyCost, "macs": MacsCost, "paper": PaperCost, "params": ParamsCost},
)


def register(name: str, make: Callable[[], CostModel]) -> None:
    """Make a cost model known under a name; raises AclaError where the name is taken.

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
    REGISTRY.add(name, make)


def get(name: str) -> CostModel:
    """Return the cost model of that name, or of MODULE:CLASS, a file of the user's own.

    Raises:
        AclaError: the name is unknown; or its module cannot be imported, or has no such cost model.

    Example:
        >>> get("acla_nas.cost.macs:MacsCost").unit
        'MACs'
    """
    model = REGISTRY.get(name)()
    if not isinstance(model, CostModel):
        raise AclaError(f"cost model {name!r} is a {type(model).__name__}: it must be {REGISTRY.needs}")
    return model


def names() -> list[str]:
    """Return the names of all cost models that are registered here or by plugins, sorted."""
    return REGISTRY.names()
