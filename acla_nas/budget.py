"""Budget: an upper limit on the cost of what a search inserts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from acla_nas import cost as costs
from acla_nas.cost.space_cost import SpaceCost
from acla_nas.errors import AclaError

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace


class Budget(NamedTuple):
    """What the inserted modules may cost: at most ``limit`` in the unit of a cost model.

    Example:
        >>> Budget.parse("macs<=2e9")
        Budget(model='macs', limit=2000000000.0)
    """

    model: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Return the budget that a text such as "macs<=2e9" or "params<=50000" sets.

        Raises:
            AclaError: not of that form, an unknown cost model, or a limit below 0.
        """
        parts = re.fullmatch(r"\s*([\w:.]+)\s*<=\s*(\S+)\s*", text)
        try:
            limit = float(parts[2].replace("_", "")) if parts else math.nan
        except ValueError:
            limit = math.nan
        if parts is None or not (limit >= 0 and math.isfinite(limit)):
            raise AclaError(f"budget must be COST<=NUMBER, such as macs<=2e9, not {text!r}")
        costs.get(parts[1])
        return cls(parts[1], limit)

    @property
    def unit(self) -> str:
        """The unit of the limit."""
        return costs.get(self.model).unit

    def on(self, space: CrossLayerSpace) -> Limit:
        """Return the limit that this budget sets to the samples of a space."""
        return Limit(SpaceCost(space, costs.get(self.model)), self.limit)


class Limit:
    """Says which samples of a space are within a budget, and cuts the others down to it."""

    def __init__(self, cost: SpaceCost, limit: float) -> None:
        self.cost, self.limit = cost, limit

    def allows(self, sample: Mapping[str, Any]) -> bool:
        """Is the cost of the sample within the budget?"""
        return self.cost.of(sample) <= self.limit

    def cut(self, sample: Mapping[str, Any], worth: Mapping[int, float]) -> dict[str, Any]:
        """Return the sample without the modules that are worth least, as many as it takes.

        Args:
            sample: of the space.
            worth: position -> a number; the module of the smallest goes first.
        """
        kept = dict(sample)
        for j in sorted(worth, key=lambda j: (worth[j], j)):
            if self.allows(kept):
                break
            kept[f"insert/{j}"] = False
        return kept
