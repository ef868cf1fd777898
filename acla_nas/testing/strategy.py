"""The contract of a search strategy: seeds, resuming, budgets, and a small problem with a known answer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from acla_nas import cost as costs
from acla_nas.budget import Limit
from acla_nas.candidate import Candidate
from acla_nas.cost.space_cost import SpaceCost
from acla_nas.proposals import Decisions
from acla_nas.space import CrossLayerSpace

# What a module is worth, and what pairs of them are worth together: 2 and 5 are what they are by each other.
_ALONE = {1: -0.6, 2: 0.3, 3: 0.5, 4: -0.4, 5: 0.2}
_TOGETHER = {(2, 5): 1.5, (3, 4): -0.5, (1, 2): -0.4, (1, 4): 0.8, (1, 5): -0.3, (3, 5): 0.4}
_SEEDS = 10
_TRIALS, _FEW = 20, 14


class Search(Protocol):
    """Runs a strategy on a space and returns what it found, the derived architecture first.

    It keeps what it needs to go on in the folder, stays within the limit, and calls ``on_step`` within each
    trial or epoch; what that raises, it lets through.
    """

    def __call__(  # noqa: D102
        self,
        strategy: Any,
        space: CrossLayerSpace,
        *,
        folder: Path | None,
        limit: Limit | None,
        on_step: Callable[[], None],
    ) -> Sequence[Candidate]: ...


def table_space(positions: int = 5) -> CrossLayerSpace:
    """Return a space in which a trial takes no time: attention between layers that do nothing."""
    backbone = nn.Sequential(*(nn.Identity() for _ in range(positions)))
    paths = [str(j) for j in range(positions)]
    return CrossLayerSpace(backbone, paths, attention="cla", num_keys=1, input_shape=(1, 4, 4))


def table_value(positions: Sequence[int]) -> float:
    """Return what modules at these positions are worth; the best choice of the first five is (2, 3, 5).

    Example:
        >>> table_value((2, 3, 5)), table_value(())
        (2.9, 0.0)
    """
    gates = torch.zeros(max(5, *positions, 0), dtype=torch.float64)
    gates[[j - 1 for j in positions]] = 1
    return round(float(value_of_gates(gates)), 6)


def value_of_gates(gates: Tensor) -> Tensor:
    """Return :func:`table_value` for gates (P,) in 0 .. 1, with its gradient."""
    alone = [_ALONE.get(j, -0.1) * gate for j, gate in enumerate(gates, start=1)]
    together = [worth * gates[i - 1] * gates[j - 1] for (i, j), worth in _TOGETHER.items()]
    return torch.stack(alone + together).sum()


def search_by_table(
    strategy: Any,
    space: CrossLayerSpace,
    *,
    folder: Path | None = None,
    limit: Limit | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Sequence[Candidate]:
    """Run a multi-trial strategy whose candidates are scored by :func:`table_value`."""

    def score(network: Any) -> float:
        on_step()
        return table_value(network.positions)

    run = strategy.run(space, score, folder=folder, limit=limit, show=False)
    return [run.best, *run.candidates]


def check_strategy(
    make: Callable[..., Any],
    *,
    gain: float | None = 0.25,
    large: bool = True,
    space: Callable[..., CrossLayerSpace] = table_space,
    search: Search = search_by_table,
) -> None:
    """Assert that a search strategy keeps the contract of all strategies.

    Checked are: the same seed gives the same result; interrupted in every trial or epoch and run again, by
    exceptions and as if killed, a search comes to the result that it has uninterrupted; everything found
    is within the budget, and a budget of 0 leaves the bare backbone, with finite numbers. On a space of 2^5
    architectures with a table of values, the best of 20 trials, averaged over 10 seeds, is compared with
    the expectation of as many random ones. A space of 40 gates can be searched.

    Args:
        make: called with trials=, seed= and cost_weight=, returns the strategy.
        gain: how much of the way from what random search expects to the optimum it must come at least; 1
            for one that always finds it. Not checked where None.
        large: can it search 40 gates?
        space: makes the space, of 40 positions where called with 40 (``large``).
        search: how to run the strategy; a one-shot one needs data and a trainer.

    Raises:
        AssertionError: with what is wrong.

    Example:
        >>> from acla_nas.strategies import RegularizedEvolution
        >>> check_strategy(lambda **options: RegularizedEvolution(population=5, **options))
    """

    def run(
        seed: int = 0,
        trials: int = _FEW,
        cost_weight: float = 0.0,
        on: CrossLayerSpace | None = None,
        folder: Path | None = None,
        limit: Limit | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Sequence[Candidate]:
        strategy = make(trials=trials, seed=seed, cost_weight=cost_weight)
        return search(strategy, on or space(), folder=folder, limit=limit, on_step=on_step)

    expected = run()
    _assert_same(run(), expected, "the same seed gives another result")
    _check_resume(run, expected)
    _check_budget(run, space)
    if large:
        found = run(on=space(40))
        assert all(max(c.arch.positions, default=0) <= 40 for c in found)
        assert all(math.isfinite(c.quality) for c in found), "a quality is not finite on 40 gates"
    if gain is not None:
        _check_gain(run, gain)


class _Killed(BaseException):
    """Ends a process without giving it the time to note anything."""


def _check_resume(run: Callable[..., Sequence[Candidate]], expected: Sequence[Candidate]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for attempt in range(100):
            steps = 0

            def on_step(attempt: int = attempt) -> None:
                nonlocal steps
                steps += 1
                if steps > 1:
                    raise KeyboardInterrupt if attempt % 2 else _Killed

            try:
                found = run(folder=Path(folder), on_step=on_step)
                break
            except (KeyboardInterrupt, _Killed):
                continue
        else:
            raise AssertionError("a search that is interrupted after every step does not get on")
        assert attempt > 1, "the search has no steps to interrupt: call on_step in each"
    _assert_same(found, expected, "interrupted and resumed, it comes to another result")


def _check_budget(run: Callable[..., Sequence[Candidate]], space: Callable[..., CrossLayerSpace]) -> None:
    cost = SpaceCost(space(), costs.get("macs"))
    whole = cost.of({**{f"insert/{j}": True for j in cost.positions}, "keys": max(cost.num_keys)})
    for share in (0.3, 0.0):
        limit = Limit(cost, share * whole)
        for candidate in run(limit=limit, cost_weight=0.1):
            j = candidate.arch.positions
            assert candidate.cost <= limit.limit, f"positions {j} cost {candidate.cost}, over {limit.limit}"
            assert share or not j, f"positions {j} are within a budget of 0"
            assert math.isfinite(candidate.quality), f"the quality of positions {j} is {candidate.quality}"


def _check_gain(run: Callable[..., Sequence[Candidate]], gain: float) -> None:
    decisions = Decisions(table_space())
    listed = decisions.listed() or []
    values = sorted(
        table_value([int(name.split("/")[1]) for name, value in params.items() if value]) for params in listed
    )
    # The best of n drawn without replacement is the k-th smallest of N in C(k - 1, n - 1) of C(N, n) ways.
    ways = [math.comb(k, _TRIALS - 1) for k in range(len(values))]
    random = sum(w * v for w, v in zip(ways, values)) / sum(ways)
    best = [max(c.quality for c in run(seed=seed, trials=_TRIALS)) for seed in range(_SEEDS)]
    mean = sum(best) / len(best)
    reached = (mean - random) / (values[-1] - random)
    assert reached >= gain - 1e-9, (
        f"of {_TRIALS} trials the best has {mean:.3f} on average, random search {random:.3f}, the optimum "
        f"{values[-1]:.3f}: that is {reached:.2f} of the way, not {gain}"
    )


def _assert_same(found: Sequence[Candidate], expected: Sequence[Candidate], message: str) -> None:
    def shown(candidates: Sequence[Candidate]) -> list[tuple[Any, ...]]:
        return [
            (c.arch.positions, c.arch.attention["num_keys"], c.quality, round(c.cost, 6)) for c in candidates
        ]

    assert shown(found) == shown(expected), f"{message}: {shown(found)}, not {shown(expected)}"
