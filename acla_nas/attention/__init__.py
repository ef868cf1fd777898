"""What can be inserted after a position: adaptive cross-layer attention, and what it compares to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from acla_nas.attention.acla import ACLA, cla
from acla_nas.attention.attention import Attention, Feature, OwnLayerAttention
from acla_nas.attention.combined import Combined, combine
from acla_nas.attention.cross_layer_non_local import CrossLayerNonLocal
from acla_nas.attention.multi_head import MultiHeadAttention
from acla_nas.attention.non_local import NonLocal
from acla_nas.attention.squeeze_excitation import SqueezeExcitation
from acla_nas.errors import AclaError
from acla_nas.registry import Registry

__all__ = [
    "ACLA",
    "Attention",
    "Combined",
    "CrossLayerNonLocal",
    "Feature",
    "MultiHeadAttention",
    "NonLocal",
    "OwnLayerAttention",
    "SqueezeExcitation",
    "cla",
    "default_options",
    "get",
    "names",
    "register",
]


def _is_attention(part: object) -> bool:
    if inspect.isclass(part):
        return issubclass(part, Attention) and not inspect.isabstract(part)
    return inspect.isfunction(part)


REGISTRY: Registry[Callable[..., Attention]] = Registry(
    "attention",
    "acla_nas.attention",
    "a complete subclass of Attention, or a function that returns one",
    _is_attention,
    {
        "acla": ACLA,
        "cla": cla,
        "clnl": CrossLayerNonLocal,
        "mha": MultiHeadAttention,
        "nl": NonLocal,
        "se": SqueezeExcitation,
    },
)


def register(name: str, make: Callable[..., Attention]) -> None:
    """Make ``make(channels, num_keys, reference_channels=..., **options)`` known under a name.

    Raises:
        AclaError: the name has a plus or a colon, or is taken.
    """
    if "+" in name:
        raise AclaError(f"attention {name!r} cannot be registered: + stands between the names of several")
    REGISTRY.add(name, make)


def get(name: str, *, imports: bool = True) -> Callable[..., Attention]:
    """Return what makes the attention of that name; "acla+se" is ACLA with SE after it.

    Args:
        name: one of `names()`, or MODULE:NAME of the user's own (see
            :class:`acla_nas.registry.Registry`), or several with a plus between them.
        imports: False for a name out of a file that must not decide what is imported: MODULE:NAME is then
            known only if it was asked for before.

    Raises:
        AclaError: no name, an unknown one, or its module cannot be imported or has no such attention.

    Example:
        >>> get("nl").__name__
        'NonLocal'
    """
    if not isinstance(name, str):
        raise AclaError(f"attention is chosen by its name, not {name!r}: give one of your own by register()")
    makes = [REGISTRY.get(part) if imports else REGISTRY.known(part) for part in name.split("+")]
    return makes[0] if len(makes) == 1 else combine(makes)


def default_options(name: str) -> dict[str, Any]:
    """Return the options of an attention by its name, but for the number of keys, with their defaults.

    Of those that are numbers, texts, True, False or None, as a file can hold.

    Example:
        >>> default_options("cla")
        {'softmax': 'joint'}
    """
    parameters = inspect.signature(get(name)).parameters.values()
    given = {"channels", "num_keys", "num_references", "reference_channels"}
    plain = (str, int, float, type(None))
    return {p.name: p.default for p in parameters if p.name not in given and isinstance(p.default, plain)}


def names() -> list[str]:
    """Return the names of all attention modules that are registered here or by plugins, sorted."""
    return REGISTRY.names()
