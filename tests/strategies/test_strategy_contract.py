"""Every strategy keeps the contract."""

from __future__ import annotations

import functools

import pytest

from acla_nas import strategies
from acla_nas.testing import check_strategy, search_by_epochs


def exhaustive(*, trials, **options):
    return strategies.Exhaustive(**options)


# What is made how, and how much better than random search it is to be on the table of values.
MULTI_TRIAL = {
    "random": (strategies.RandomSearch, {"gain": None}),
    "exhaustive": (exhaustive, {"gain": 1.0, "large": False}),
    "evolution": (functools.partial(strategies.RegularizedEvolution, population=5), {}),
    "tpe": (strategies.TPE, {}),
    "gp": (strategies.GP, {"gain": None, "large": False}),  # the rest is in the slow tier
    "nsga2": (functools.partial(strategies.NSGA2, population=5), {}),
}


@pytest.mark.parametrize("name", MULTI_TRIAL)
def test_multi_trial(name):
    make, options = MULTI_TRIAL[name]
    check_strategy(make, **options)


@pytest.mark.slow
def test_gp_is_better_than_random_search():
    check_strategy(strategies.GP, gain=0.75)


@pytest.mark.parametrize("make", [strategies.TPE, pytest.param(strategies.GP, marks=pytest.mark.slow)])
def test_two_objectives(make):
    check_strategy(functools.partial(make, multi_objective=True), gain=None)


def one_shot(make, *, trials, seed, cost_weight):
    """Make a strategy that alternates weights and alphas for as many epochs as others have trials."""
    return make(epochs=(1, trials), cost_weight=cost_weight, alpha_learning_rate=0.2, seed=seed)


def random_one_shot(*, trials, seed, cost_weight):
    return strategies.RandomOneShot(epochs=trials, seed=seed)


ONE_SHOT = {
    "darts": (functools.partial(one_shot, strategies.DARTS), 1.0),
    "gumbel_darts": (functools.partial(one_shot, strategies.GumbelDARTS), 1.0),
    "proxyless": (functools.partial(one_shot, strategies.Proxyless), 1.0),
    "random_one_shot": (random_one_shot, None),  # it decides nothing
    "two_stage": (functools.partial(one_shot, strategies.TwoStage), 1.0),
}


@pytest.mark.parametrize(
    "name", [name if name == "two_stage" else pytest.param(name, marks=pytest.mark.slow) for name in ONE_SHOT]
)
def test_one_shot(name):
    make, gain = ONE_SHOT[name]
    check_strategy(make, gain=gain, search=search_by_epochs)


def test_all_strategies_are_here():
    assert set(strategies.names()) == {*MULTI_TRIAL, *ONE_SHOT}
