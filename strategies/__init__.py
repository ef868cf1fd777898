"""Search strategies, one a file, and the register that knows them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from acla_nas.multi_trial import MultiTrial
from acla_nas.nni_nas import OneShotStrategy
from acla_nas.registry import Registry
from acla_nas.strategies.darts import DARTS
from acla_nas.strategies.evolution import RegularizedEvolution
from acla_nas.strategies.exhaustive import Exhaustive
from acla_nas.strategies.gp import GP
from acla_nas.strategies.gumbel_darts import GumbelDARTS
from acla_nas.strategies.nsga2 import NSGA2
from acla_nas.strategies.proxyless import Proxyless
from acla_nas.strategies.random_one_shot import RandomOneShot
from acla_nas.strategies.random_search import RandomSearch
from acla_nas.strategies.tpe import TPE
from acla_nas.strategies.two_stage import TwoStage

__all__ = [
    "DARTS",
    "GP",
    "NSGA2",
    "TPE",
    "Exhaustive",
    "GumbelDARTS",
    "Proxyless",
    "RandomOneShot",
    "RandomSearch",
    "RegularizedEvolution",
    "TwoStage",
    "get",
    "names",
    "register",
]

REGISTRY: Registry[Callable[..., OneShotStrategy | MultiTrial]] = Registry(
    "strategy",
    "acla_nas.strategies",
    "a class, or a function that returns a strategy",
    lambda part: inspect.isclass(part) or inspect.isfunction(part),
    {
        "darts": DARTS,
        "evolution": RegularizedEvolution,
        "exhaustive": Exhaustive,
        "gp": GP,
        "gumbel_darts": GumbelDARTS,
        "nsga2": NSGA2,
        "proxyless": Proxyless,
        "random": RandomSearch,
        "random_one_shot": RandomOneShot,
        "tpe": TPE,
        "two_stage": TwoStage,
    },
)


def register(name: str, make: Callable[..., OneShotStrategy | MultiTrial]) -> None:
    """Make a strategy known under a name; raises AclaError where the name is taken."""
    REGISTRY.add(name, make)


def get(name: str) -> Callable[..., OneShotStrategy | MultiTrial]:
    """Return what makes the strategy of that name, or of MODULE:CLASS, a file of the user's own.

    Raises:
        AclaError: the name is unknown, or its module cannot be imported or has no such class.

    Example:
        >>> get("two_stage") is TwoStage
        True
    """
    return REGISTRY.get(name)


def names() -> list[str]:
    """Return the names of all strategies that are registered here or by plugins, sorted."""
    return REGISTRY.names()
