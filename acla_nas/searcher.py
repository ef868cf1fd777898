"""search: run a strategy on a space, in this process, and derive the architecture it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from acla_nas.arch import Arch, shown_positions
from acla_nas.budget import Budget
from acla_nas.candidate import Candidate, pareto_front
from acla_nas.errors import AclaError
from acla_nas.exporter import copied_weights, save_model
from acla_nas.multi_trial import MultiTrial, Scorer
from acla_nas.nni_nas import Lightning, OneShotStrategy
from acla_nas.one_shot import run_one_shot
from acla_nas.space import CrossLayerSpace

Strategy: TypeAlias = OneShotStrategy | MultiTrial


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        arch: the derived architecture.
        cost: what its inserted modules cost, in the unit of the strategy's cost model.
        history: of a one-shot strategy, one dict per epoch: epoch, val_psnr (dB), train_loss, expected cost,
            open gates, ..; of a multi-trial one, one per trial: trial, positions, quality, cost.
        weights: the derived network's: its part of the supernet's, or those that its trial trained.
        probabilities: position -> probability of insertion at the end; empty after a multi-trial search.
        num_positions: of the space.
        candidates: all that a multi-trial search scored, in order; empty after a one-shot search.
        is_complete: False where time_limit ended a one-shot search early; with a folder it can go on.
    """

    arch: Arch
    cost: float
    history: list[dict[str, Any]]
    weights: dict[str, Tensor] = field(repr=False)
    probabilities: dict[int, float] = field(default_factory=dict)
    num_positions: int = 0
    candidates: tuple[Candidate, ...] = ()
    is_complete: bool = True

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates that no other beats in both quality and cost, the cheapest first."""
        return pareto_front(self.candidates)

    def text(self) -> str:
        """Return what was found in two lines: the positions, and what their modules cost."""
        found = self.arch
        positions = f"positions: {shown_positions(found.positions)} of {self.num_positions}"
        costs = ", ".join(f"{_number(value)} {unit}" for unit, value in found.cost.items())
        return f"{positions}\ncost: {costs}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the network as a diagram, cost and quality below it."""
        from acla_nas.diagram import arch_html

        return arch_html(
            self.arch,
            num_positions=self.num_positions or None,
            probabilities=self.probabilities,
            note=self._quality(),
        )

    def _quality(self) -> str:
        """Return in words how good the last epoch was, or the best trial."""
        if self.candidates:
            found = (c for c in self.candidates if c.arch.positions == self.arch.positions)
            return f"quality {max(c.quality for c in found):.2f}, {len(self.front)} on the front"
        psnr = self.history[-1].get("val_psnr") if self.history else None
        return f"{len(self.history)} epochs" + ("" if psnr is None else f", validation PSNR {psnr:.2f} dB")

    def save(self, folder: str | Path) -> Path:
        """Write arch.json and weights.safetensors into a folder and return it."""
        return save_model(self.arch, self.weights, folder)


def search(
    space: CrossLayerSpace,
    strategy: Strategy,
    evaluator: Lightning | Scorer,
    *,
    folder: str | Path | None = None,
    budget: str | Budget | None = None,
    time_limit: float | None = None,
    keep_checkpoint: bool = False,
    show: bool = True,
) -> SearchResult:
    """Search a space with a strategy, in this process; no port is opened.

    Args:
        space: becomes the supernet: its weights are trained in place.
        strategy: a one-shot strategy, such as :class:`acla_nas.strategies.TwoStage` or one of NNI's own, or
            a multi-trial one, such as :class:`acla_nas.strategies.NSGA2`.
        evaluator: for a one-shot strategy, data and recipe from
            :func:`acla_nas.training.make_evaluator`, or any Lightning evaluator of NNI's with training and
            validation loaders. For a multi-trial one, what scores a network, higher is better:
            :class:`acla_nas.scoring.ShortTraining`, :class:`acla_nas.scoring.InheritedWeights`, or any
            callable that takes the network and returns a number.
        folder: where the search keeps what it needs to go on after an interruption: called again with
            arguments made in the same way it does so.
        keep_checkpoint: leave a one-shot search's checkpoint there at the end, until the result is safe;
            then call :func:`acla_nas.training.checkpoint.forget`.
        budget: what the found architecture may cost at most, such as "macs<=2e9".
        time_limit: minutes after which no further epoch or trial is begun.
        show: print a line per trial of a multi-trial strategy; epochs are the evaluator's to print.

    Raises:
        AclaError: a strategy and an evaluator that do not go together, or a budget that cannot be measured; a
            space that a one-shot strategy has searched, or an evaluator that has been used; or no epoch ends
            within the time limit.

    Example:
        >>> import acla_nas
        >>> from acla_nas.strategies import TwoStage
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> evaluator = acla_nas.training.make_evaluator(
        ...     acla_nas.tasks.SuperResolution(2), steps_per_epoch=1, batch_size=2, progress=False)
        >>> result = search(space, TwoStage(epochs=(1, 1)), evaluator)
        >>> len(result.history)
        2
    """
    if time_limit is not None and not time_limit > 0:
        raise AclaError(f"time_limit must be above 0 minutes, not {time_limit}")
    folder = None if folder is None else Path(folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    limit = None if budget is None else budget.on(space)
    name = type(strategy).__name__
    if isinstance(strategy, MultiTrial):
        if isinstance(evaluator, Lightning):
            raise AclaError(
                f"{name} scores one network at a time: give it an acla_nas.scoring.ShortTraining, an "
                "InheritedWeights, or a function that takes a network and returns a number"
            )
        trials = strategy.run(space, evaluator, folder=folder, limit=limit, time_limit=time_limit, show=show)
        return SearchResult(
            arch=_found(trials.best.arch, strategy, trials.best.arch.cost),
            cost=trials.best.cost,
            history=[
                {"trial": n, "positions": c.arch.positions, "quality": c.quality, "cost": c.cost}
                for n, c in enumerate(trials.candidates, start=1)
            ],
            weights=trials.weights,
            num_positions=len(space.positions),
            candidates=trials.candidates,
        )
    if not isinstance(evaluator, Lightning):
        raise AclaError(f"{name} trains a supernet: give it an evaluator of acla_nas.training.make_evaluator")
    run = run_one_shot(
        space,
        strategy,
        evaluator,
        folder=folder,
        limit=limit,
        time_limit=time_limit,
        keep_checkpoint=keep_checkpoint,
    )
    cost = run.cost.of(run.sample)
    return SearchResult(
        arch=_found(space.arch(run.sample), strategy, {run.cost.unit: cost}),
        cost=cost,
        history=run.history,
        weights=copied_weights(space.freeze(run.sample)),
        probabilities=run.probabilities,
        num_positions=len(space.positions),
        is_complete=run.is_complete,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _found(arch: Arch, strategy: Strategy, cost: dict[str, float]) -> Arch:
    provenance = {**arch.provenance, "strategy": type(strategy).__name__}
    return arch.model_copy(update={"cost": cost, "provenance": provenance})
