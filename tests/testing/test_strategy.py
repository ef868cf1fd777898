"""The contract suite of strategies catches those that break it."""

from __future__ import annotations

import random

import optuna
import pytest

from acla_nas import strategies
from acla_nas.candidate import Candidate
from acla_nas.multi_trial import MultiTrial
from acla_nas.testing import check_strategy
from acla_nas.testing.strategy import search_by_table, table_space, table_value


def test_the_table_has_the_optimum_that_it_says():
    run = strategies.Exhaustive().run(table_space(), lambda n: table_value(n.positions), show=False)
    assert len(run.candidates) == 32
    assert (run.best.arch.positions, run.best.quality) == ((2, 3, 5), 2.9)


class Unseeded(MultiTrial):
    def sampler(self, seed):
        return optuna.samplers.RandomSampler(random.SystemRandom().randrange(2**31))


class Remembering(MultiTrial):
    """Draws from a state that does not outlive the process."""

    def __init__(self, trials, **options):
        super().__init__(trials, **options)
        self._sampler = None

    def sampler(self, seed):
        self._sampler = self._sampler or optuna.samplers.RandomSampler(self.seed)
        return self._sampler


class Stubborn(strategies.RandomSearch):
    """Goes over the budget."""

    def run(self, space, scorer, *, limit=None, **options):
        return super().run(space, scorer, **options)


class Forgetful(strategies.RandomSearch):
    """Keeps nothing in the folder."""

    def run(self, space, scorer, *, folder=None, **options):
        return super().run(space, scorer, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Unseeded, "same seed"),
        (Remembering, "interrupted and resumed"),
        (Stubborn, "over"),
        (Forgetful, "does not get on"),
        (strategies.RandomSearch, "of the way"),
    ],
)
def test_a_broken_strategy_is_caught(make, message):
    with pytest.raises(AssertionError, match=message):
        check_strategy(make, gain=0.5, large=False)


def test_a_search_without_steps_is_caught():
    def search(strategy, space, *, folder, limit, on_step):
        return search_by_table(strategy, space, folder=folder, limit=limit)

    with pytest.raises(AssertionError, match="no steps"):
        check_strategy(strategies.RandomSearch, search=search, gain=None)


def test_a_number_that_is_not_finite_is_caught():
    def search(strategy, space, **options):
        found = search_by_table(strategy, space, **options)
        return [Candidate(c.arch, c.quality if c.arch.positions else float("inf"), c.cost) for c in found]

    with pytest.raises(AssertionError, match="quality of positions"):
        check_strategy(strategies.RandomSearch, search=search, gain=None, large=False)
