"""Every cost model keeps the contract, and the contract notices one that does not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from acla_nas import cost
from acla_nas.cost import CostModel, CostTable, MacsCost
from acla_nas.errors import AclaError
from acla_nas.testing import check_cost


@pytest.mark.parametrize("name", cost.names())
def test_every_registered_cost_model(name):
    check_cost(name)


@pytest.mark.parametrize("attention", ["se", "clnl", "acla+se"])
@pytest.mark.parametrize("name", ["macs", "params"])
def test_with_other_attention(name, attention):
    check_cost(name, attention=attention)


def test_a_model_a_class_and_what_makes_one():
    check_cost(MacsCost())
    check_cost(MacsCost)
    check_cost(lambda: MacsCost())
    check_cost("acla_nas.cost.macs:MacsCost", num_keys=3)


class Changed(MacsCost):
    """MACs, but for what a subclass does to the table."""

    def change(self, table, network):
        return table

    def table(self, network, input_shape=(3, 48, 48)):
        return self.change(super().table(network, input_shape), network)


class Negative(Changed):
    def change(self, table, network):
        table.pair[2, 1] = -1.0
        return table


class NotMeasured(Changed):
    def change(self, table, network):
        table.own[3] = float("nan")
        return table


class Free(Changed):
    def change(self, table, network):
        table.own[0] = table.pair[0, 0] = 0.0
        return table


class Moody(Changed):
    calls = 0

    def change(self, table, network):
        self.calls += 1
        return dataclasses.replace(table, own=table.own + self.calls)


class DependsOnTheDevice(Changed):
    def change(self, table, network):
        if next(network.parameters()).device.type == "cpu":
            return table
        return dataclasses.replace(table, pair=table.pair * 2)


class WithoutAUnit(Changed):
    unit = ""


class Quadratic(CostTable):
    """Counts a position's reference to itself s_j^2 times."""

    def __call__(self, gates, open_keys=None):
        return gates @ self.own.to(gates) + gates @ self.pair.to(gates).tril() @ gates


class CountsOwnReferenceTwice(Changed):
    def change(self, table, network):
        return Quadratic(table.own, table.pair, unit=table.unit)


class Rounded(CostTable):
    """Has no gradient."""

    def __call__(self, gates, open_keys=None):
        return super().__call__(gates) + (gates.detach() - gates).sum()


class LosesTheGradient(Changed):
    def change(self, table, network):
        return Rounded(table.own, table.pair, unit=table.unit)


class Discounted(CostTable):
    """Sells three at the price of two."""

    def of(self, inserted):
        return super().of(inserted) * (0.1 if sum(inserted) > 2 else 1)


class NotASum(Changed):
    def change(self, table, network):
        return Discounted(table.own, table.pair, unit=table.unit)


class Trains(Changed):
    def change(self, table, network):
        with torch.no_grad():
            next(network.parameters()).add_(1)
        return table


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Negative, r"pair\[2, 1\] is -1.0: finite, 0 or more"),
        (NotMeasured, r"own\[3\] is nan"),
        (Free, "the cheapest module costs nothing"),
        (Moody, "asked for again, the table differs in own"),
        (DependsOnTheDevice, "weights on (meta|cuda), the table differs in pair"),
        (WithoutAUnit, "has no unit"),
        (CountsOwnReferenceTwice, "a gate of 0.5 at position 1 does not cost half"),
        (LosesTheGradient, "the gradient at position 1 is not the slope"),
        (NotASum, "is not the sum of its entries"),
        (Trains, "changes the weight"),
        (int, "int is not a CostModel"),
    ],
)
def test_what_breaks_the_contract_is_noticed(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_cost(broken)


def test_a_model_that_is_not_finished():
    class OwnOnly(CostModel):
        unit = "things"

        def own(self, attention, query):
            return 1.0

    with pytest.raises(AclaError, match=r"cost model OwnOnly lacks pair\(\), or a table\(\) in its place"):
        check_cost(OwnOnly)
