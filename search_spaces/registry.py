"""The register of search spaces by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from acla_nas.errors import AclaError, unknown_name
from acla_nas.network import backbone_only

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace

Make = TypeVar("Make", bound="Callable[..., CrossLayerSpace]")

_REGISTRY: dict[str, Callable[..., CrossLayerSpace]] = {}


def register(make: Make) -> Make:
    """Make a function that returns a CrossLayerSpace known under its own name.

    An architecture found in the space then carries that name and the options, so that
    :func:`acla_nas.export` can build the network again by itself.

    Example:
        >>> import acla_nas
        >>> from torch import nn
        >>> @register
        ... def three_convolutions(channels=8, **attention):
        ...     layers = [nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=1) for i in range(3)]
        ...     return acla_nas.CrossLayerSpace(nn.Sequential(*layers), ["0", "1", "2"], **attention)
        >>> acla_nas.search_spaces.get("three_convolutions")(channels=4).source["options"]
        {'channels': 4}
    """
    name = make.__name__
    signature = inspect.signature(make)

    @functools.wraps(make)
    def registered(*args: Any, **kwargs: Any) -> CrossLayerSpace:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise AclaError(f"search space {name!r}: {error}; it is {name}{signature}") from None
        bound.apply_defaults()  # so that an architecture means the same when a default changes
        space = make(*args, **kwargs)
        options: dict[str, Any] = {}
        for parameter, value in bound.arguments.items():
            if signature.parameters[parameter].kind is not inspect.Parameter.VAR_KEYWORD:
                options[parameter] = value
            elif "input_shape" in value:  # which inputs the backbone takes; the rest is the attention's,
                options["input_shape"] = value["input_shape"]  # which the architecture stores by itself
        space.source = {"name": name, "options": options}
        return space

    _REGISTRY[name] = registered
    return registered  # type: ignore[return-value]


def get(name: str) -> Callable[..., CrossLayerSpace]:
    """Return what makes the search space of that name; raises AclaError for an unknown one."""
    if name not in _REGISTRY:
        raise unknown_name("search space", name, _REGISTRY)
    return _REGISTRY[name]


def backbone(name: str, options: dict[str, Any]) -> nn.Module:
    """Return the bare backbone of a registered search space.

    Raises:
        AclaError: an unknown search space, or an option that it does not have.
    """
    make = get(name)
    parameters = inspect.signature(make).parameters
    for option in options:
        if option not in parameters and option != "input_shape":
            known = ", ".join(p for p, kind in parameters.items() if kind.kind is not kind.VAR_KEYWORD)
            raise AclaError(f"search space {name!r} has no option {option!r}; it has {known}")
    with backbone_only():
        return make(**options).network.backbone


def names() -> list[str]:
    """Return the names of all registered search spaces, sorted."""
    return sorted(_REGISTRY)
