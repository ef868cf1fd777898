"""Cost models against hand computation and against the operations that run."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from acla_nas import CrossLayerSpace, cost
from acla_nas.cost import CostModel, CostTable
from acla_nas.errors import AclaError
from acla_nas.testing import count_macs

SHAPE = (3, 4, 5)  # N = 20 query pixels
CHANNELS, KEYS = 8, 4


def make_space(count=3, channels=CHANNELS, shape=SHAPE, num_keys=KEYS, **options):
    layers = [nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=1) for i in range(count)]
    paths = [str(i) for i in range(count)]
    return CrossLayerSpace(nn.Sequential(*layers), paths, num_keys=num_keys, input_shape=shape, **options)


def gates(*inserted):
    return torch.tensor(inserted, dtype=torch.float64)


# By hand, from Eq. 12 with N = 20, C = 8, K = 4: one reference costs
# K (2 N C^2 + 2 N C^2 + 6 K N C) = 4 (2560 + 2560 + 3840) = 35840, with every key open;
# with half of them open 4 (1280 + 2560 + 3840) = 30720; with none 4 (2560 + 3840) = 25600.
PAIR, HALF, SHUT = 35_840, 30_720, 25_600


@pytest.mark.parametrize(
    ("inserted", "pairs"),
    [
        ((0, 1, 0), 1),  # (2,2)
        ((1, 0, 1), 3),  # (1,1) (3,1) (3,3)
        ((1, 1, 1), 6),  # (1,1) (2,1) (2,2) (3,1) (3,2) (3,3)
    ],
)
def test_paper_cost_by_hand(inserted, pairs):
    table = cost.get("paper").table(make_space().network, SHAPE)
    assert table.unit == "FLOPs"
    assert table(gates(*inserted)).item() == pairs * PAIR
    assert table.of([bool(s) for s in inserted]) == pairs * PAIR
    assert table(gates(*inserted), torch.full((3, 3), 0.5)).item() == pairs * HALF
    assert table(gates(*inserted), torch.zeros(3, 3)).item() == pairs * SHUT
    assert table(gates(*inserted), torch.ones(3, 3)).item() == pairs * PAIR


def test_open_keys_count_for_their_own_pair():
    table = cost.get("paper").table(make_space().network, SHAPE)
    share = torch.ones(3, 3)
    share[2, 0] = 0.5  # position 3 reading position 1
    assert table(gates(1, 0, 1), share).item() == 2 * PAIR + HALF
    assert table(gates(1, 1, 0), share).item() == 3 * PAIR


def test_open_keys_carry_a_gradient():
    table = cost.get("paper").table(make_space().network, SHAPE)
    share = torch.full((3, 3), 0.5, dtype=torch.float64, requires_grad=True)
    table(gates(1, 0, 1), share).backward()
    expected = torch.zeros(3, 3)
    expected[0, 0] = expected[2, 0] = expected[2, 2] = PAIR - SHUT
    assert torch.equal(share.grad.float(), expected)


def test_macs_by_hand():
    # H: N C^2 = 1280. One reference: offsets and logits 3 K N C = 1920, G and M N C (C + K) = 1920,
    # four rows a key 4 K N C = 2560 and four mask values a key 4 K N = 320.
    table = cost.get("macs").table(make_space(attention="acla").network, SHAPE)
    assert table.unit == "MACs"
    assert table.of([False, True, False]) == 1280 + 6720
    assert table.of([True, False, True]) == 2 * 1280 + 3 * 6720
    # CLA: no M, and no mask values.
    table = cost.get("macs").table(make_space(attention="cla").network, SHAPE)
    assert table.of([True, False, True]) == 2 * 1280 + 3 * (1920 + 1280 + 2560)


def executed_macs(network, shape):
    return count_macs(network, torch.rand(1, *shape))


@pytest.mark.parametrize("inserted", [(True, False, False), (True, False, True), (True, True, True)])
@pytest.mark.parametrize("options", [{"attention": "cla"}, {}, {"shared_mask": True}], ids=str)
def test_macs_are_those_executed_by_the_derived_network(options, inserted):
    shape = (3, 12, 10)
    space = make_space(shape=shape, **options)
    table = cost.get("macs").table(space.network, shape)
    decisions = {f"insert/{j}": s for j, s in enumerate(inserted, 1)}
    derived = space.freeze({**decisions, "keys": KEYS}).eval()
    added = executed_macs(derived, shape) - executed_macs(derived.select([]), shape)
    assert added == pytest.approx(table.of(list(inserted)), rel=0.01)


def test_macs_of_differing_resolutions_are_those_executed():
    backbone = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.Conv2d(10, 4, 1)
    )
    shape = (3, 12, 16)
    space = CrossLayerSpace(backbone, "?", num_keys=KEYS, input_shape=shape)
    table = cost.get("macs").table(space.network, shape)
    derived = space.freeze({"insert/1": True, "insert/2": False, "insert/3": True, "keys": KEYS}).eval()
    added = executed_macs(derived, shape) - executed_macs(derived.select([]), shape)
    assert added == pytest.approx(table.of([True, False, True]), rel=0.01)


@pytest.fixture(params=["paper", "macs"])
def table(request):
    return cost.get(request.param).table(make_space(4).network, SHAPE)


def test_nothing_inserted_costs_nothing(table):
    assert table(torch.zeros(4)).item() == 0
    assert table.of([False] * 4) == 0


def test_smallest_is_the_cheapest_single_module(table):
    singles = [table.of([i == j for i in range(4)]) for j in range(4)]
    assert table.smallest == min(singles) > 0


def test_gradient_is_that_of_finite_differences(table):
    point = torch.tensor([0.2, 1.0, 0.0, 0.7], dtype=torch.float64, requires_grad=True)
    table(point).backward()
    for j in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[j] = 1e-3
        slope = (table(point.detach() + step) - table(point.detach() - step)).item() / 2e-3
        assert point.grad[j].item() == pytest.approx(slope, rel=1e-9)


def test_the_own_term_is_linear_in_the_gate_not_quadratic(table):
    whole = table(gates(0, 1, 0, 0)).item()
    for s in (0.25, 0.5, 2.0):
        assert table(gates(0, s, 0, 0)).item() == pytest.approx(s * whole, rel=1e-12)


def test_expectation_over_independent_gates_is_the_cost_of_their_probabilities(table):
    p = torch.tensor([0.1, 0.5, 0.9, 0.3], dtype=torch.float64)
    expectation = 0.0
    for decisions in itertools.product((0.0, 1.0), repeat=4):
        s = gates(*decisions)
        probability = torch.where(s > 0, p, 1 - p).prod().item()
        expectation += probability * table(s).item()
    assert table(p).item() == pytest.approx(expectation, rel=1e-12)


def test_cost_is_of_the_dtype_of_the_gates(table):
    assert table(torch.ones(4)).dtype == torch.float32
    assert table(torch.ones(4, dtype=torch.float64)).dtype == torch.float64


class Count(CostModel):
    unit = "pairs"

    def own(self, attention, query):
        return 100.0

    def pair(self, attention, query, reference):
        return 1.0


def test_a_model_of_ones_own(monkeypatch):
    monkeypatch.setattr(cost.REGISTRY, "entries", dict(cost.REGISTRY.entries))
    cost.register("count", Count)
    assert "count" in cost.names()
    table = cost.get("count").table(make_space().network, SHAPE)
    assert isinstance(table, CostTable)
    assert table.unit == "pairs"
    assert table.of([True, False, True]) == 203
    assert table(gates(1, 0, 1), torch.zeros(3, 3)).item() == 203, "nothing of it is per open key"


def test_a_table_does_not_change_the_network():
    space = make_space()
    before = [len(m._forward_hooks) for m in space.modules()]
    cost.get("macs").table(space.network, SHAPE)
    assert [len(m._forward_hooks) for m in space.modules()] == before


def test_names_and_an_unknown_name():
    assert {"macs", "paper"} <= set(cost.names())
    with pytest.raises(AclaError, match="unknown cost model 'mac'; did you mean 'macs'"):
        cost.get("mac")
