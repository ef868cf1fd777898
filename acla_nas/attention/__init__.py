"""What can be inserted after a position: adaptive cross-layer attention, and what it compares to."""

from __future__ import annotations

from collections.abc import Callable

from acla_nas.attention.acla import ACLA, cla
from acla_nas.attention.attention import Attention, Feature, OwnLayerAttention
from acla_nas.attention.combined import Combined, combine
from acla_nas.attention.cross_layer_non_local import CrossLayerNonLocal
from acla_nas.attention.multi_head import MultiHeadAttention
from acla_nas.attention.non_local import NonLocal
from acla_nas.attention.squeeze_excitation import SqueezeExcitation
from acla_nas.errors import AclaError, unknown_name

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
    "get",
    "names",
    "register",
]

_REGISTRY: dict[str, Callable[..., Attention]] = {
    "acla": ACLA,
    "cla": cla,
    "clnl": CrossLayerNonLocal,
    "mha": MultiHeadAttention,
    "nl": NonLocal,
    "se": SqueezeExcitation,
}


def register(name: str, make: Callable[..., Attention]) -> None:
    """Make ``make(channels, num_keys, reference_channels=..., **options)`` known under a name."""
    if "+" in name:
        raise AclaError(f"attention {name!r} cannot be registered: + stands between the names of several")
    _REGISTRY[name] = make


def get(name: str) -> Callable[..., Attention]:
    """Return what makes the attention of that name; "acla+se" is ACLA with SE after it.

    Raises:
        AclaError: unknown name.

    Example:
        >>> get("nl").__name__
        'NonLocal'
    """
    for part in name.split("+"):
        if part not in _REGISTRY:
            raise unknown_name("attention", part, _REGISTRY)
    makes = [_REGISTRY[part] for part in name.split("+")]
    return makes[0] if len(makes) == 1 else combine(makes)


def names() -> list[str]:
    """Return the names of all attention modules, sorted."""
    return sorted(_REGISTRY)
