"""GP: Bayesian optimisation with a Gaussian process, Optuna's."""

from __future__ import annotations

from typing import Any

import optuna

from acla_nas.multi_trial import MultiTrial


class GP(MultiTrial):
    """Proposes where a Gaussian process expects the largest improvement: for few, expensive trials.

    The first ten trials are random. Each proposal takes about a second, more with hundreds of trials.

    Args:
        trials: architectures to score.
        multi_objective: seek the front of quality and cost instead of the highest score.
        options: those of :class:`acla_nas.multi_trial.MultiTrial`.

    Example:
        >>> GP(trials=30, cost="macs", cost_weight=0.05).trials
        30
    """

    attempts = 2  # it is slow, and nearly sure of what it proposes

    def __init__(self, trials: int = 50, *, multi_objective: bool = False, **options: Any) -> None:
        super().__init__(trials, **options)
        self.multi_objective = multi_objective

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's GPSampler."""
        return optuna.samplers.GPSampler(seed=seed)
