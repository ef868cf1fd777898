"""Neural architecture search for cross-layer attention in image restoration, on NNI and PyTorch.

From a backbone to the derived network, a plain ``nn.Module``::

    space = acla_nas.search_spaces.edsr(scale=2)             # or CrossLayerSpace(your_network, "body.*")
    task = acla_nas.tasks.SuperResolution(scale=2)
    evaluator = acla_nas.training.make_evaluator(task, train="DIV2K/train", loss="mse")
    result = acla_nas.search(space, acla_nas.strategies.TwoStage(epochs=(20, 40)), evaluator)
    model = acla_nas.export(result.arch, weights=result.weights)

Each has its own ``help()``: :func:`search`, :class:`CrossLayerSpace`, :func:`export`, :class:`Arch`,
:func:`restore`; the packages ``search_spaces``, ``strategies``, ``attention``, ``cost``, ``tasks``, ``data``
and ``training`` hold the parts, and ``formats`` the files for deployment.

Everything public is imported on first use, so that ``acla-nas --help`` needs no PyTorch and a
deployed network needs no NNI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from acla_nas._version import __version__

if TYPE_CHECKING:
    from acla_nas.arch import Arch
    from acla_nas.exporter import export
    from acla_nas.network import CrossLayerNetwork
    from acla_nas.restorer import Restorer, restore
    from acla_nas.searcher import SearchResult, search
    from acla_nas.space import CrossLayerSpace

__all__ = [
    "Arch",
    "CrossLayerNetwork",
    "CrossLayerSpace",
    "Restorer",
    "SearchResult",
    "__version__",
    "export",
    "restore",
    "search",
]

_OBJECTS = {
    "Arch": "acla_nas.arch",
    "CrossLayerNetwork": "acla_nas.network",
    "CrossLayerSpace": "acla_nas.space",
    "SearchResult": "acla_nas.searcher",
    "Restorer": "acla_nas.restorer",
    "export": "acla_nas.exporter",
    "restore": "acla_nas.restorer",
    "search": "acla_nas.searcher",
}
_MODULES = {
    "attention",
    "cost",
    "data",
    "errors",
    "evaluation",
    "formats",
    "gates",
    "metrics",
    "ops",
    "report",
    "search_spaces",
    "strategies",
    "tasks",
    "training",
}


def __getattr__(name: str) -> Any:
    if name in _OBJECTS:
        value = getattr(importlib.import_module(_OBJECTS[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"acla_nas.{name}")
    else:
        raise AttributeError(f"module 'acla_nas' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
