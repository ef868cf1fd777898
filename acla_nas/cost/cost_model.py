"""What a cost model is, and the table that makes it differentiable in the gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from acla_nas.attention import Attention, Feature
from acla_nas.errors import AclaError
from acla_nas.network import CrossLayerNetwork, trace_features


class CostModel:
    """What the modules of a network cost, as a sum over positions and (position, reference) pairs.

    A model of one's own defines ``unit`` and two methods, ``own`` and ``pair``, where sizes of features
    say it all (see :func:`acla_nas.cost.register`); or ``table``, where it needs the network itself.
    :func:`acla_nas.testing.check_cost` tests it for all that is expected of it.
    """

    unit: ClassVar[str]

    def own(self, attention: Attention, query: Feature) -> float:
        """Return what a module costs whatever it refers to."""
        raise AclaError(f"cost model {type(self).__name__} lacks own(), or a table() in its place: define it")

    def pair(self, attention: Attention, query: Feature, reference: Feature) -> float:
        """Return what one reference of a module costs, with every key open."""
        raise AclaError(
            f"cost model {type(self).__name__} lacks pair(), or a table() in its place: define it"
        )

    def kept(self, attention: Attention, query: Feature, reference: Feature) -> float:
        """Return the part of :meth:`pair` that is in proportion to the share of open keys."""
        return 0.0

    def table(self, network: CrossLayerNetwork, input_shape: tuple[int, ...] = (3, 48, 48)) -> CostTable:
        """Return the costs of all positions and pairs of a network, for one input (C, H, W)."""
        paths = network.paths
        features = trace_features(network.backbone, paths, input_shape, network.layouts)
        count = len(paths)
        own = torch.zeros(count, dtype=torch.float64)
        pair, kept = torch.zeros(2, count, count, dtype=torch.float64)
        for row, j in enumerate(paths):
            attention: Attention = network.attention[str(j)]  # type: ignore[assignment]
            own[row] = self.own(attention, features[j])
            for column, l in enumerate(paths):
                if l <= j:
                    arguments = (attention, features[j], features[l])
                    pair[row, column] = self.pair(*arguments)
                    kept[row, column] = self.kept(*arguments)
        return CostTable(own, pair, kept, self.unit)


@dataclass(frozen=True)
class CostTable:
    """The cost of any choice among P positions, differentiable in the gates (Eq. 13).

    Attributes:
        own: (P,), what the module at position j costs whatever it refers to.
        pair: (P, P), [j, l]: what its reference to position l <= j costs.
        kept: (P, P), the part of ``pair`` in proportion to the share of open keys.
        unit: such as "MACs".
        own_error: (P,), how far ``own`` may be off where it is measured: half of the 95 % interval.
        pair_error: (P, P), likewise of ``pair``.

    Example:
        >>> table = CostTable(torch.tensor([1.0, 1.0]), torch.tensor([[2.0, 0.0], [3.0, 2.0]]))
        >>> table(torch.tensor([0.0, 1.0])), table(torch.tensor([1.0, 1.0]))
        (tensor(3.), tensor(9.))
    """

    own: Tensor
    pair: Tensor
    kept: Tensor | None = None
    unit: str = ""
    own_error: Tensor | None = None
    pair_error: Tensor | None = None

    def __call__(self, gates: Tensor, open_keys: Tensor | None = None) -> Tensor:
        """Return the cost ``sum_j s_j (own_j + sum_{l<=j} s_l pair_jl)``, a scalar.

        Where l = j the product ``s_l s_j`` is ``s_j``, not its square: it matters for the gradient and
        for expectations over independent gates, of which this is exact.

        Args:
            gates: (P,), s_j in 0 .. 1.
            open_keys: (P, P), the share of open keys of each pair, all open where None.
        """
        pair = self.pair.to(gates)
        if open_keys is not None and self.kept is not None:
            pair = pair + self.kept.to(gates) * (open_keys - 1)
        alone = self.own.to(gates) + pair.diagonal()
        return gates @ alone + gates @ pair.tril(-1) @ gates

    @property
    def smallest(self) -> float:
        """The cost of the cheapest single module."""
        return float((self.own + self.pair.diagonal()).min())

    def of(self, inserted: list[bool]) -> float:
        """Return the cost of a derived architecture."""
        return float(self(torch.tensor(inserted, dtype=torch.float64)))
