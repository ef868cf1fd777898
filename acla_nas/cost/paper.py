"""The paper's cost, literally (Eq. 12 and 13)."""

from __future__ import annotations

from acla_nas.attention import Attention, Feature
from acla_nas.cost.cost_model import CostModel


class PaperCost(CostModel):
    """The paper's own count of FLOPs (Eq. 12), more than ten times what is executed.

        cost_j = sum_{l<=j} s_l sum_k (2 m N C^2 + 2 N C^2 + 6 K N C)

    N is the number of query pixels and m the gate of the key, whose share of open ones the table takes.
    It counts a projection per key, where the executed form has one per reference. A module that samples no
    keys counts as one with K = 1. Use it to follow the paper, :class:`acla_nas.cost.MacsCost` to know.
    """

    unit = "FLOPs"

    def own(self, attention: Attention, query: Feature) -> float:
        """Return 0: Eq. 12 counts nothing that is there once per module."""
        return 0.0

    def pair(self, attention: Attention, query: Feature, reference: Feature) -> float:
        """Return the cost of one reference with all its keys open."""
        n, c, k = query.pixels, query.channels, attention.num_keys
        return self.kept(attention, query, reference) + k * (2 * n * c**2 + 6 * k * n * c)

    def kept(self, attention: Attention, query: Feature, reference: Feature) -> float:
        """Return the first term, which counts open keys only."""
        return attention.num_keys * 2 * query.pixels * query.channels**2
