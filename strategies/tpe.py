"""TPE: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from typing import Any

import optuna

from acla_nas.multi_trial import MultiTrial


class TPE(MultiTrial):
    """Proposes what is likelier among the better trials than among the others (Bergstra et al., 2011).

    Decisions are modelled together. The first ten trials are random.

    Args:
        trials: architectures to score.
        multi_objective: seek the front of quality and cost instead of the highest score.
        options: those of :class:`acla_nas.multi_trial.MultiTrial`.

    Example:
        >>> TPE(trials=30, cost="macs", cost_weight=0.05).trials
        30
    """

    def __init__(self, trials: int = 50, *, multi_objective: bool = False, **options: Any) -> None:
        super().__init__(trials, **options)
        self.multi_objective = multi_objective

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's TPESampler."""
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)
