"""DARTS: modules weighed by a softmax, searched with NNI's implementation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acla_nas import cost as costs
from acla_nas.cost import CostModel
from acla_nas.nni_nas import ExpectationProfilerPenalty, LightningModule, nni_one_shot
from acla_nas.one_shot import UnderCost, check_alternation


class Differentiable(UnderCost):
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
        check_alternation(epochs, cost_weight, alpha_learning_rate)
        super().__init__(  # type: ignore[call-arg]
            arc_learning_rate=alpha_learning_rate,
            warmup_epochs=epochs[0],
            penalty=_LogCost(cost_weight),
        )
        self.max_epochs = sum(epochs)
        self.cost_weight = cost_weight
        self.cost = costs.get(cost) if isinstance(cost, str) else cost
        self.seed = seed

    def mutate_model(self, model: Any) -> Any:
        """Make the space the supernet, whose gates the penalty is of."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # of the alphas' first values
            model = super().mutate_model(model)
        self.penalty.log_cost = lambda: self.log_cost(model)  # type: ignore[attr-defined]
        return model

    def configure_oneshot_module(self, training_module: LightningModule) -> Any:
        """Return NNI's, with alphas in the order of the gates.

        In NNI's own order, which no two processes share, a search that goes on would give one alpha the state
        that Adam keeps of another.
        """
        module: Any = super().configure_oneshot_module(training_module)  # type: ignore[misc]
        module.arch_parameters = functools.partial(_alphas_in_order, module)
        return module


def _alphas_in_order(module: Any) -> list[nn.Parameter]:
    return list(
        dict.fromkeys(alpha for gate in module.supernet_modules() for alpha in gate.arch_parameters())
    )


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
