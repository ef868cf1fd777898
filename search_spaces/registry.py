"""The register of search spaces by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from acla_nas.errors import AclaError
from acla_nas.network import backbone_only
from acla_nas.registry import Registry

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace

Make = TypeVar("Make", bound="Callable[..., CrossLayerSpace]")


class _Spaces(Registry["Callable[..., CrossLayerSpace]"]):
    def adopt(self, name: str, part: Callable[..., CrossLayerSpace]) -> Callable[..., CrossLayerSpace]:
        """Return a function that is not registered as if it were, under the name that it is known by."""
        registered_as = getattr(part, "registered_as", None)
        return part if registered_as and (":" in name or registered_as == name) else _named(name, part)


REGISTRY = _Spaces(
    "search space",
    "acla_nas.search_spaces",
    "a function that returns a CrossLayerSpace",
    inspect.isfunction,
)


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
    made = _named(make.__name__, make)
    REGISTRY.add(make.__name__, made)
    return made  # type: ignore[return-value]


def _named(name: str, make: Callable[..., CrossLayerSpace]) -> Callable[..., CrossLayerSpace]:
    """Return the function, with a space that knows which name and options it was made from."""
    make = getattr(make, "unregistered", make)
    signature = inspect.signature(make)

    @functools.wraps(make)
    def registered(*args: Any, **kwargs: Any) -> CrossLayerSpace:
        from acla_nas.space import CrossLayerSpace

        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise AclaError(f"search space {name!r}: {error}; it is {make.__name__}{signature}") from None
        bound.apply_defaults()  # so that an architecture means the same when a default changes
        space = make(*args, **kwargs)
        if not isinstance(space, CrossLayerSpace):
            raise AclaError(
                f"search space {name!r} returns a {type(space).__name__}, not a CrossLayerSpace: "
                'let it return acla_nas.CrossLayerSpace(network, "PATHS.*", **attention)'
            )
        options: dict[str, Any] = {}
        for parameter, value in bound.arguments.items():
            if signature.parameters[parameter].kind is not inspect.Parameter.VAR_KEYWORD:
                options[parameter] = value
            elif "input_shape" in value:  # which inputs the backbone takes; the rest is the attention's,
                options["input_shape"] = value["input_shape"]  # which the architecture stores by itself
        space.source = {"name": name, "options": options}
        return space

    registered.registered_as, registered.unregistered = name, make  # type: ignore[attr-defined]
    return registered


def get(name: str) -> Callable[..., CrossLayerSpace]:
    """Return what makes the search space of that name, or of MODULE:FUNCTION, a file of the user's own.

    MODULE:FUNCTION imports the module (see :class:`acla_nas.registry.Registry`), and lets
    :func:`acla_nas.export` build architectures that were found in that space.

    Raises:
        AclaError: the name is unknown, or its module cannot be imported or has no such function.

    Example:
        >>> get("acla_nas.search_spaces.edsr:edsr") is get("edsr")
        True
    """
    return REGISTRY.get(name)


def backbone(name: str, options: dict[str, Any]) -> nn.Module:
    """Return the bare backbone of a search space that is known; nothing is imported because of its name.

    Raises:
        AclaError: an unknown search space, MODULE:FUNCTION that :func:`get` was not asked for before, or an
            option that it does not have.
    """
    try:
        make = REGISTRY.known(name)
    except AclaError as error:
        raise AclaError(f"{error}; or give export(arch, backbone=...)") from None
    parameters = inspect.signature(make).parameters
    for option in options:
        if option not in parameters and option != "input_shape":
            known = ", ".join(p for p, kind in parameters.items() if kind.kind is not kind.VAR_KEYWORD)
            raise AclaError(f"search space {name!r} has no option {option!r}; it has {known}")
    with backbone_only():
        return make(**options).network.backbone


def names() -> list[str]:
    """Return the names of all search spaces that are registered here or by plugins, sorted."""
    return REGISTRY.names()
