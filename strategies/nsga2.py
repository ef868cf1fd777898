"""NSGA-II: a genetic search for the front of quality and cost."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial

from acla_nas.errors import AclaError
from acla_nas.multi_trial import MultiTrial


class NSGA2(MultiTrial):
    """Breeds generations from the architectures that none beats in both quality and cost (Deb et al., 2002).

    Args:
        trials: architectures to score.
        population: trials in a generation, at least 2.
        options: those of :class:`acla_nas.multi_trial.MultiTrial`.

    Raises:
        AclaError: an argument out of range.

    Example:
        >>> NSGA2(trials=60, population=12).multi_objective
        True
    """

    multi_objective = True

    def __init__(self, trials: int = 50, *, population: int = 10, **options: Any) -> None:
        super().__init__(trials, **options)
        if population < 2:
            raise AclaError(f"population must be at least 2, not {population}: children have two parents")
        self.population = population

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's NSGAIISampler."""
        return _NSGAII(population_size=self.population, seed=seed)


class _NSGAII(optuna.samplers.NSGAIISampler):
    """Has the parents in one order, whether it has just chosen them or finds them in the study."""

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        parents = super().get_parent_population(study, generation)
        return sorted(parents, key=lambda trial: trial.number)
