"""SpaceCost: what the architectures of a search space cost under one cost model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acla_nas.cost.cost_model import CostModel
from acla_nas.errors import AclaError

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace


class SpaceCost:
    """The cost of what a space's samples insert, and its expectation over gates that are open by chance.

    Args:
        space: not searched yet or searched already.
        model: the cost model.

    Attributes:
        unit: such as "MACs".
        model: the name of the cost model's class.
        tables: a :class:`acla_nas.cost.CostTable` for each number of keys to choose from.
        smallest: the cost of the cheapest single module, with the first number of keys.

    Raises:
        AclaError: a cost that is negative or not finite: a cost that cannot be measured is no cost.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> cost = SpaceCost(space, acla_nas.cost.get("macs"))
        >>> cost.of({"insert/1": False, "insert/2": False, "keys": 16})
        0.0
    """

    def __init__(self, space: CrossLayerSpace, model: CostModel) -> None:
        self.unit, self.model = model.unit, type(model).__name__
        self.num_keys: tuple[int, ...] = tuple(space.key_gate.num_keys)
        self.positions = space.network.positions
        networks = {
            keys: space.network
            if keys == max(self.num_keys)
            else space.network.select(space.network.positions, keys)
            for keys in self.num_keys
        }
        self.tables = [model.table(networks[keys], space.input_shape) for keys in self.num_keys]
        for table in self.tables:
            for costs in (table.own, table.pair):
                if not bool((costs.isfinite() & (costs >= 0)).all()):
                    raise AclaError(
                        f"the cost model {type(model).__name__} gives a cost that is negative or not finite: "
                        "nothing can be weighed against it"
                    )
        self.smallest = self.tables[0].smallest

    def of(self, sample: Mapping[str, Any]) -> float:
        """Return the cost of a derived architecture."""
        table = self.tables[self.num_keys.index(sample["keys"])]
        return table.of([sample[f"insert/{j}"] for j in self.positions])

    def expected(self, inserted: Tensor, of_keys: Tensor) -> Tensor:
        """Return the expected cost, differentiable.

        Args:
            inserted: (P,), the probability of a module at each position.
            of_keys: the probability of each number of keys.
        """
        return sum((p * table(inserted) for p, table in zip(of_keys, self.tables)), torch.zeros(()))

    def check_weight(self, weight: float) -> None:
        """Raise AclaError where the logarithm of this cost cannot be weighed, as it may be that of 0."""
        if weight and not self.smallest > 0:
            raise AclaError(
                f"cost_weight is {weight}, but {self.model} has a module that costs nothing, whose logarithm "
                "cannot be weighed: set cost_weight to 0, or another cost"
            )

    def log(self, cost: Tensor) -> Tensor:
        """Return log(cost + cheapest module), finite with nothing inserted (Eq. 14)."""
        return (cost + self.smallest).log()
