"""Budget: what it takes, whom it lets pass, and how it cuts."""

from __future__ import annotations

import pytest

import acla_nas
from acla_nas.budget import Budget
from acla_nas.cost import CostModel
from acla_nas.errors import AclaError


@pytest.fixture(scope="module")
def space():
    return acla_nas.search_spaces.edsr(num_blocks=3, num_channels=4, num_keys=2)


def sample(*positions: int) -> dict:
    return {**{f"insert/{j}": j in positions for j in (1, 2, 3)}, "keys": 2}


@pytest.mark.parametrize(
    ("text", "limit"), [("macs<=2e9", 2e9), (" params <= 50_000 ", 5e4), ("paper<=0", 0.0)]
)
def test_parse(text: str, limit: float) -> None:
    assert Budget.parse(text).limit == limit


@pytest.mark.parametrize(
    "text", ["", "macs", "macs<2", "2e9", "macs<=", "macs<=x", "macs<=-1", "macs<=inf", "macs<=nan"]
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(AclaError, match="budget must be COST<=NUMBER, such as macs<=2e9"):
        Budget.parse(text)


def test_a_cost_that_nobody_knows() -> None:
    with pytest.raises(AclaError, match="unknown cost model 'mac'; did you mean 'macs'"):
        Budget.parse("mac<=1")


def test_allows_up_to_the_limit_and_it_included(space) -> None:
    cost = acla_nas.cost.get("params").table(space.network, space.input_shape).of([True, True, False])
    assert Budget("params", cost).on(space).allows(sample(1, 2))
    assert not Budget("params", cost - 1).on(space).allows(sample(1, 2))


def test_cuts_what_is_worth_least_and_no_more_than_it_takes(space) -> None:
    limit = Budget("params", 1e9).on(space)
    assert limit.cut(sample(1, 2, 3), {1: 0.3, 2: 0.1, 3: 0.9}) == sample(1, 2, 3)
    two = limit.cost.of(sample(1, 3))
    assert Budget("params", two).on(space).cut(sample(1, 2, 3), {1: 0.3, 2: 0.1, 3: 0.9}) == sample(1, 3)
    assert Budget("params", 0).on(space).cut(sample(1, 2, 3), {1: 0.3, 2: 0.1, 3: 0.9}) == sample()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_cannot_be_measured_is_an_error(space, value: float) -> None:
    class Broken(CostModel):
        unit = "things"

        def own(self, attention, query):
            return value

        def pair(self, attention, query, reference):
            return 1.0

    acla_nas.cost.REGISTRY.entries["broken"] = Broken
    try:
        with pytest.raises(AclaError, match="Broken gives a cost that is negative or not finite"):
            Budget("broken", 1.0).on(space)
    finally:
        del acla_nas.cost.REGISTRY.entries["broken"]
