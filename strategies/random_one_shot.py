"""RandomOneShot: a supernet trained on evenly drawn architectures, with NNI's implementation."""

from __future__ import annotations

from acla_nas import cost as costs
from acla_nas.cost import CostModel
from acla_nas.errors import AclaError
from acla_nas.nni_nas import nni_one_shot
from acla_nas.one_shot import UnderCost


class RandomOneShot(UnderCost, nni_one_shot.RandomOneShot):
    """Trains the weights of a supernet, each step those of an architecture drawn evenly (Guo et al. 2020).

    It decides nothing: the architecture it returns is one more draw. What it is for is its supernet, whose
    weights a multi-trial strategy's candidates can inherit (see :class:`acla_nas.scoring.InheritedWeights`).

    Args:
        epochs: of the supernet.
        cost: "macs", "params", .. or a :class:`acla_nas.cost.CostModel`, for the record.
        seed: of the draws.

    Raises:
        AclaError: epochs below 1, or an unknown cost model.

    Example:
        >>> RandomOneShot(epochs=20).max_epochs
        20
    """

    def __init__(self, epochs: int = 60, cost: str | CostModel = "macs", seed: int = 0) -> None:
        if not isinstance(epochs, int) or epochs < 1:
            raise AclaError(f"epochs must be a number, at least 1, not {epochs}")
        super().__init__()
        self.max_epochs, self.seed = epochs, seed
        self.cost = costs.get(cost) if isinstance(cost, str) else cost
