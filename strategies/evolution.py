"""Regularised evolution: the winner of a small tournament has a child, and the oldest dies."""

from __future__ import annotations

import random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from acla_nas.errors import AclaError
from acla_nas.multi_trial import MultiTrial


class RegularizedEvolution(MultiTrial):
    """Changes one decision of the best of a few that are drawn from the youngest (Real et al., 2019).

    The population is the last ``population`` trials; until there are so many, architectures are random.

    Args:
        trials: architectures to score.
        population: trials that live at a time, at least 1.
        tournament: how many of them are drawn, between 1 and population.
        options: those of :class:`acla_nas.multi_trial.MultiTrial`.

    Raises:
        AclaError: an argument out of range.

    Example:
        >>> RegularizedEvolution(trials=100, population=20, tournament=5).population
        20
    """

    def __init__(
        self, trials: int = 50, *, population: int = 10, tournament: int = 3, **options: Any
    ) -> None:
        super().__init__(trials, **options)
        if population < 1:
            raise AclaError(f"population must be at least 1, not {population}")
        if not 1 <= tournament <= population:
            raise AclaError(
                f"tournament must be between 1 and the population, {population}, not {tournament}"
            )
        self.population, self.tournament = population, tournament

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return the sampler that mutates the winner of a tournament."""
        return _Evolution(self.population, self.tournament, seed)


class _Evolution(optuna.samplers.BaseSampler):
    """Finds its population in the study; so it needs no memory."""

    def __init__(self, population: int, tournament: int, seed: int) -> None:
        self.population, self.tournament = population, tournament
        self.rng = random.Random(seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        scored = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(scored) < self.population:
            return {}
        drawn = self.rng.sample(scored[-self.population :], self.tournament)
        child = dict(max(drawn, key=lambda t: t.values[0]).params)
        name = self.rng.choice(sorted(search_space))
        child[name] = self._other(search_space[name], child[name])
        return child

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._other(param_distribution)

    def _other(self, distribution: BaseDistribution, *than: Any) -> Any:
        assert isinstance(distribution, CategoricalDistribution)
        return self.rng.choice([choice for choice in distribution.choices if choice not in than])
