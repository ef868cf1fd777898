"""Running one-shot strategies: what a space, an evaluator and a cost must be."""

from __future__ import annotations

import pytest
from planted import make_evaluator, make_space

import acla_nas
from acla_nas import CrossLayerSpace
from acla_nas.cost import CostModel, CostTable
from acla_nas.errors import AclaError
from acla_nas.strategies import DARTS, RandomOneShot, TwoStage


@pytest.mark.parametrize("second", [DARTS, TwoStage])
def test_a_space_is_searched_once(second) -> None:
    space = make_space()
    acla_nas.search(space, RandomOneShot(epochs=1), make_evaluator(0, 1))
    with pytest.raises(AclaError, match=r"this space has been searched, .* make a new one"):
        acla_nas.search(space, second(epochs=(0, 1)), make_evaluator(0, 1))
    again = make_space()
    again.network.load_state_dict(space.network.state_dict())  # as the message says
    acla_nas.search(again, second(epochs=(0, 1)), make_evaluator(0, 1))


def test_an_evaluator_is_for_one_search() -> None:
    evaluator = make_evaluator(0, 1)
    acla_nas.search(make_space(), RandomOneShot(epochs=1), evaluator)
    with pytest.raises(AclaError, match="this evaluator has been used: make one for each"):
        acla_nas.search(make_space(), RandomOneShot(epochs=1), evaluator)


class Free(CostModel):
    unit = "nothing"

    def table(self, network, input_shape) -> CostTable:
        found = acla_nas.cost.get("macs").table(network, input_shape)
        return CostTable(0 * found.own, 0 * found.pair)


@pytest.mark.parametrize("strategy", [DARTS, TwoStage])
def test_modules_that_cost_nothing_are_refused_before_any_epoch(strategy) -> None:
    space = make_space()
    with pytest.raises(AclaError, match=r"Free has a module that costs nothing, .* set cost_weight to 0"):
        acla_nas.search(space, strategy(epochs=(1, 1), cost=Free()), make_evaluator(0, 1))
    acla_nas.search(make_space(), strategy(epochs=(0, 1), cost=Free(), cost_weight=0), make_evaluator(0, 1))


@pytest.mark.parametrize(("make", "epochs"), [(TwoStage, 3), (DARTS, 3), (RandomOneShot, (1, 1))])
def test_epochs_of_another_form(make, epochs) -> None:
    with pytest.raises(AclaError, match="epochs must be"):
        make(epochs=epochs)


def test_nnis_own_strategies_are_there() -> None:
    from nni.nas.strategy import DARTS as of_nni

    space: CrossLayerSpace = make_space()
    acla_nas.search(space, of_nni(), make_evaluator(0, 1))
