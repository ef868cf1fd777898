"""DARTS: modules weighed by a softmax, searched with NNI's implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acla_nas import cost as costs
from acla_nas.cost import CostModel
from acla_nas.cost.space_cost import SpaceCost
from acla_nas.errors import AclaError
from acla_nas.nni_nas import ExpectationProfilerPenalty, Lightning, nni_one_shot
from acla_nas.one_shot import gate_probabilities


class Differentiable:
    """What DARTS, GumbelDARTS and Proxyless have in common: mixed into NNI's classes of those names.

    Args:
        epochs: of the weights alone, then of weights and alphas in turn.
        cost: "macs", "params", .. or a :class:`acla_nas.cost.CostModel`.
        cost_weight: lambda of ``L_task + lambda log(expected cost + cheapest module)``, at least 0.
        alpha_learning_rate: of Adam on the alphas.
        seed: of what is drawn at random.

    Raises:
        AclaError: an argument out of range, or an unknown cost model.
    """

    def __init__(
        self,
        epochs: tuple[int, int] = (20, 40),
        cost: str | CostModel = "macs",
        cost_weight: float = 0.15,
        alpha_learning_rate: float = 1e-2,
        seed: int = 0,
    ) -> None:
        if len(epochs) != 2 or epochs[0] < 0 or epochs[1] < 1:
            raise AclaError(f"epochs must be (weights alone >= 0, both >= 1), not {tuple(epochs)}")
        if not (cost_weight >= 0 and math.isfinite(cost_weight)):
            raise AclaError(f"cost_weight must be 0 or more, not {cost_weight}: it is lambda of Eq. 14")
        if not alpha_learning_rate > 0:
            raise AclaError(f"alpha_learning_rate must be above 0, not {alpha_learning_rate}")
        super().__init__(  # type: ignore[call-arg]
            arc_learning_rate=alpha_learning_rate,
            warmup_epochs=epochs[0],
            penalty=_LogCost(cost_weight),
        )
        self.epochs = epochs
        self.cost = costs.get(cost) if isinstance(cost, str) else cost
        self.seed = seed

    @property
    def max_epochs(self) -> int:
        """Epochs of both kinds."""
        return sum(self.epochs)

    def mutate_model(self, model: Any) -> Any:
        """Work out what the space's modules cost, and make it the supernet."""
        self.space_cost = SpaceCost(model, self.cost)
        model = super().mutate_model(model)  # type: ignore[misc]
        cost = self.space_cost
        self.penalty.log_cost = lambda: cost.log(cost.expected(*gate_probabilities(model)))  # type: ignore[attr-defined]
        return model

    def mutate_evaluator(self, evaluator: Lightning) -> Lightning:
        """Let the evaluator train for the strategy's epochs."""
        evaluator.trainer.fit_loop.max_epochs = self.max_epochs
        return super().mutate_evaluator(evaluator)  # type: ignore[misc]


class DARTS(Differentiable, nni_one_shot.DARTS):
    """Every module runs, weighed by the softmax of its two alphas (Liu et al. 2019), as NNI has it.

    Takes the arguments of :class:`Differentiable`. The most work per step of all strategies, since all
    modules run in the steps of the weights too.

    Example:
        >>> DARTS(epochs=(1, 2), cost_weight=0.3).max_epochs
        3
    """


class _LogCost(ExpectationProfilerPenalty):
    """Adds ``weight * log(expected cost + cheapest module)`` to the loss of the alphas (Eq. 14)."""

    def __init__(self, weight: float) -> None:
        nn.Module.__init__(self)  # NNI's own needs a profiler, which this is instead of
        self.weight = weight
        self.log_cost: Callable[[], Tensor] = lambda: torch.zeros(())

    def forward(self, loss: Tensor, sample: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss with the penalty, and what to log."""
        return (loss + self.weight * self.log_cost() if self.weight else loss), {}
