"""The contract of a cost model: what strategies and constraints rely on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acla_nas import cost as costs
from acla_nas.cost import CostModel, CostTable
from acla_nas.network import CrossLayerNetwork

_SHAPE = (3, 12, 16)
_COUNT = 4  # positions: all 2^4 architectures are looked at


def check_cost(
    model: str | CostModel | Callable[[], CostModel], *, attention: str = "acla", **options: Any
) -> None:
    """Assert that a cost model keeps the contract of :class:`acla_nas.cost.CostModel`.

    Checked on four positions of differing channels and sizes: that it has a unit; that costs are finite, not
    negative and the same when asked for again, on whatever device the network lies; that an architecture
    costs the sum of its own and pair entries, each module's reference to its own position once; that another
    module never makes it cheaper; that the cheapest module costs something; and that over gates between 0
    and 1 the cost is the expectation, with its true gradient.

    Args:
        model: a registered name or MODULE:CLASS, a model, or what makes one.
        attention: the name of what is inserted.
        options: of the attention.

    Raises:
        AssertionError: with what is wrong, and where.

    Example:
        >>> check_cost("macs")
    """
    made = costs.get(model) if isinstance(model, str) else model
    made = made if isinstance(made, CostModel) else made()
    assert isinstance(made, CostModel), f"{type(made).__name__} is not a CostModel"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _network(attention, options)
        table = made.table(network, _SHAPE)
        _check_entries(made, table)
        _check_repeatable(made, table, network)
    for check in (
        _check_sums,
        _check_monotone,
        _check_own_reference_once,
        _check_gradient,
        _check_expectation,
    ):
        check(table)


def _network(attention: str, options: dict[str, Any]) -> CrossLayerNetwork:
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.Conv2d(12, 8, 3, padding=1),
    )
    paths = {j: str(j - 1) for j in range(1, _COUNT + 1)}
    return CrossLayerNetwork.dense(backbone, paths, attention, input_shape=_SHAPE, **options)


def _check_entries(model: CostModel, table: CostTable) -> None:
    assert getattr(model, "unit", ""), "the cost model has no unit: set it, such as unit = 'MACs'"
    assert table.unit == model.unit, f"the table's unit is {table.unit!r}, the model's {model.unit!r}"
    assert table.own.shape == (_COUNT,), f"own is {tuple(table.own.shape)}, not ({_COUNT},)"
    assert table.pair.shape == (_COUNT, _COUNT), f"pair is {tuple(table.pair.shape)}, not P x P"
    for name in ("own", "pair", "kept", "own_error", "pair_error"):
        entries = getattr(table, name)
        if entries is None:
            continue
        assert entries.device.type == "cpu", f"{name} lies on {entries.device}, not on the CPU"
        bad = ~(entries.isfinite() & (entries >= 0))
        assert not bad.any(), f"{name}{bad.nonzero()[0].tolist()} is {entries[bad][0]}: finite, 0 or more"
    if table.kept is not None:
        assert (table.kept <= table.pair).all(), "kept is a part of pair, but exceeds it"


def _check_repeatable(model: CostModel, table: CostTable, network: CrossLayerNetwork) -> None:
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    _assert_same(model.table(network, _SHAPE), table, "asked for again, the table differs")
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name]), f"making the table changes the weight {name}"
    elsewhere = "cuda" if torch.cuda.is_available() else "meta"
    moved = model.table(network.to(elsewhere), _SHAPE)
    _assert_same(moved, table, f"with the network's weights on {elsewhere}, the table differs")


def _assert_same(table: CostTable, expected: CostTable, message: str) -> None:
    assert torch.equal(table.own, expected.own), f"{message} in own"
    assert torch.equal(table.pair, expected.pair), f"{message} in pair"


def _check_sums(table: CostTable) -> None:
    own, pair = table.own.tolist(), table.pair.tolist()
    for inserted in _architectures():
        chosen = [j for j in range(_COUNT) if inserted[j]]
        direct = sum(own[j] + sum(pair[j][l] for l in chosen if l <= j) for j in chosen)
        _assert_close(table.of(inserted), direct, f"the cost of {inserted} is not the sum of its entries")


def _check_monotone(table: CostTable) -> None:
    for inserted in _architectures():
        for j in range(_COUNT):
            more = [*inserted[:j], True, *inserted[j + 1 :]]
            less = table.of(inserted) - table.of(more)
            assert less <= 1e-9 * table.of(inserted), f"{more} costs less than {inserted}, by {less}"
    singles = [table.of([i == j for i in range(_COUNT)]) for j in range(_COUNT)]
    assert table.smallest > 0, (
        "the cheapest module costs nothing, so that the logarithm of the cost has no end"
    )
    _assert_close(table.smallest, min(singles), "smallest is not the cost of the cheapest module")


def _check_own_reference_once(table: CostTable) -> None:
    for j in range(_COUNT):
        gates = torch.zeros(_COUNT, dtype=torch.float64)
        gates[j] = 0.5
        half = float(table(gates))
        expected = 0.5 * float(table.own[j] + table.pair[j, j])
        _assert_close(half, expected, f"a gate of 0.5 at position {j + 1} does not cost half its module")


def _check_gradient(table: CostTable) -> None:
    point = torch.tensor([0.2, 1.0, 0.0, 0.7], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(table(point), point)
    for j in range(_COUNT):
        step = torch.zeros(_COUNT, dtype=torch.float64)
        step[j] = 0.5  # exact: the cost is quadratic at most
        slope = float(table(point.detach() + step) - table(point.detach() - step))
        _assert_close(float(gradient[j]), slope, f"the gradient at position {j + 1} is not the slope")


def _check_expectation(table: CostTable) -> None:
    chances = torch.tensor([0.1, 0.5, 0.9, 0.3], dtype=torch.float64)
    expected = 0.0
    for inserted in _architectures():
        chance = torch.where(torch.tensor(inserted), chances, 1 - chances).prod()
        expected += float(chance) * table.of(inserted)
    found = table(chances)
    assert isinstance(found, Tensor) and found.dim() == 0, "the cost of gates must be a scalar tensor"
    _assert_close(float(found), expected, "the cost of probabilities is not the expected cost")


def _architectures() -> list[list[bool]]:
    return [list(inserted) for inserted in itertools.product((False, True), repeat=_COUNT)]


def _assert_close(actual: float, expected: float, message: str) -> None:
    assert abs(actual - expected) <= 1e-9 * max(abs(expected), 1e-9), f"{message}: {actual}, not {expected}"
