"""Attention modules one after the other at the same position: "acla+se"."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from torch import Tensor, nn

from acla_nas.attention.attention import Attention, Feature


class Combined(Attention):
    """Several attention modules in sequence: each gets as its query what the one before it gives.

    With the update ``u_i(x)`` of part i and the references as they were before any attention::

        z_0 = x,   z_i = z_{i-1} + u_i(z_{i-1}),   update = z_last - x

    Args:
        parts: the modules, in order; those with keys have the same number of them.

    Example:
        >>> from acla_nas import attention
        >>> x = torch.randn(1, 32, 6, 6)
        >>> module = attention.get("acla+se")(32, num_keys=4, reference_channels={"1": 32}, reduction=8)
        >>> module(x, {"1": x}).shape
        torch.Size([1, 32, 6, 6])
    """

    def __init__(self, parts: Sequence[Attention]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.references = nn.ModuleDict()  # each part has its own
        self.num_keys = max(part.num_keys for part in parts)

    def forward(
        self,
        query: Tensor,
        references: Mapping[str, Tensor],
        reference_gates: Mapping[str, Tensor] | None = None,
        key_gates: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Attention.forward`."""
        first, *rest = self._parts
        update = first(query, references, reference_gates, key_gates)
        for part in rest:
            update = update + part(query + update, references, reference_gates, key_gates)
        return update

    @property
    def _parts(self) -> list[Attention]:
        return list(self.parts)  # type: ignore[arg-type]

    def select(self, references: Sequence[str], num_keys: int) -> Combined:
        """See :meth:`Attention.select`."""
        parts = [part.select(references, min(num_keys, part.num_keys)) for part in self._parts]
        return Combined(parts).train(self.training)

    def macs(self, query: Feature) -> int:
        """See :meth:`Attention.macs`."""
        return sum(part.macs(query) for part in self._parts)

    def reference_macs(self, query: Feature, reference: Feature) -> int:
        """See :meth:`Attention.reference_macs`."""
        return sum(part.reference_macs(query, reference) for part in self._parts)


def combine(makes: Sequence[Callable[..., Attention]]) -> Callable[..., Combined]:
    """Return what makes the sequence of several attention modules.

    It takes the options of them all, and gives each to every part that has it; the number of keys to the
    parts that sample keys, by default the most that one of them has by default.
    """
    options = [_parameters(make) for make in makes]
    defaults = [p["num_keys"].default if "num_keys" in p else 1 for p in options]
    merged = {name: p for parameters in reversed(options) for name, p in parameters.items()}

    def make(channels: int, num_keys: int | None = None, **given: Any) -> Combined:
        if unknown := sorted(set(given) - set(merged)):
            raise TypeError(f"none of the combined modules takes {unknown[0]!r}")
        keys = max(defaults) if num_keys is None else num_keys
        parts = []
        for make_part, parameters, default in zip(makes, options, defaults):
            own = {name: value for name, value in given.items() if name in parameters}
            if default != 1 or max(defaults) == 1:  # where no part samples keys they say so themselves
                own["num_keys"] = keys
            parts.append(make_part(channels, **own))
        return Combined(parts)

    # What a configuration may set, with its types, is read off these two.
    make.__signature__ = inspect.Signature(list(merged.values()))  # type: ignore[attr-defined]
    make.__annotations__ = {name: parameter.annotation for name, parameter in merged.items()}
    return make


def _parameters(make: Callable[..., Attention]) -> dict[str, inspect.Parameter]:
    """Return the named arguments of what makes a module, with their types as objects."""
    function: Any = make.__init__ if inspect.isclass(make) else make
    hints = get_type_hints(function)
    return {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
