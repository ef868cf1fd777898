"""The multiply-accumulates that the inserted modules execute."""

from __future__ import annotations

from acla_nas.attention import Attention, Feature
from acla_nas.cost.cost_model import CostModel


class MacsCost(CostModel):
    """Exact MACs of the executed form: the projections, and four weighted rows for each key."""

    unit = "MACs"

    def own(self, attention: Attention, query: Feature) -> float:
        """Return the MACs that are there once per module."""
        return attention.macs(query)

    def pair(self, attention: Attention, query: Feature, reference: Feature) -> float:
        """Return the MACs of one reference."""
        return attention.reference_macs(query, reference)
