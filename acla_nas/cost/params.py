"""The parameters of the inserted modules."""

from __future__ import annotations

from typing import cast

import torch

from acla_nas.attention import Attention
from acla_nas.cost.cost_model import CostModel, CostTable
from acla_nas.network import CrossLayerNetwork


class ParamsCost(CostModel):
    """Parameters of the inserted modules, exact: those of the derived network less those of its backbone.

    What belongs to a reference is in the module's ``references``; the rest is there once per module.
    """

    unit = "parameters"

    def table(self, network: CrossLayerNetwork, input_shape: tuple[int, ...] = (3, 48, 48)) -> CostTable:
        """Return the parameters of all positions and pairs; the input's shape makes no difference."""
        names = [str(j) for j in network.paths]
        own = torch.zeros(len(names), dtype=torch.float64)
        pair = torch.zeros(len(names), len(names), dtype=torch.float64)
        for row, j in enumerate(names):
            module = network.attention[j]
            for column, l in enumerate(names[: row + 1]):
                pair[row, column] = _parameters_of_reference(cast(Attention, module), l)
            own[row] = sum(p.numel() for p in module.parameters()) - pair[row].sum()
        return CostTable(own, pair, unit=self.unit)


def _parameters_of_reference(attention: Attention, name: str) -> int:
    """Return how many parameters a module has for one reference, in all the parts that it consists of."""
    parts = [part.references for part in attention.modules() if isinstance(part, Attention)]
    return sum(p.numel() for part in parts if name in part for p in part[name].parameters())
