"""Running one-shot strategies: a supernet is trained, and the architecture is read off its gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from acla_nas import cost as costs
from acla_nas.budget import Limit
from acla_nas.cost import CostModel
from acla_nas.cost.space_cost import SpaceCost
from acla_nas.data import PatchDataset
from acla_nas.errors import AclaError
from acla_nas.gates import InsertGate, KeyGate
from acla_nas.nni_nas import (
    Lightning,
    OneShotStrategy,
    RawFormatModelSpace,
    SequentialExecutionEngine,
)
from acla_nas.run_record import say
from acla_nas.space import CrossLayerSpace
from acla_nas.training.checkpoint import Checkpoint, checkpoint_of, forget, resume_from, seed_epochs
from acla_nas.training.epoch_report import EpochReport
from acla_nas.training.evaluator import epoch_history
from acla_nas.training.faults import told_in_one_line
from acla_nas.training.memory import FitMemory
from acla_nas.training.processes import from_main, is_main, share_buffers


class UnderCost:
    """What our one-shot strategies add to NNI's: a cost to search under, and epochs of their own.

    Mixed in before NNI's class. A strategy sets ``cost`` and ``max_epochs``.
    """

    cost: CostModel
    cost_weight: float = 0.0
    max_epochs: int
    space_cost: SpaceCost

    def mutate_model(self, model: Any) -> Any:
        """Work out what the space's modules cost, and make it the supernet."""
        self.space_cost = SpaceCost(model, self.cost)
        self.space_cost.check_weight(self.cost_weight)
        return super().mutate_model(model)  # type: ignore[misc]

    def mutate_evaluator(self, evaluator: Lightning) -> Lightning:
        """Let the evaluator train for the strategy's epochs."""
        evaluator.trainer.fit_loop.max_epochs = self.max_epochs
        return super().mutate_evaluator(evaluator)  # type: ignore[misc]

    def log_cost(self, space: CrossLayerSpace) -> Tensor:
        """Return log(expected cost + cheapest module), with its gradient in the alphas (Eq. 14)."""
        return self.space_cost.log(self.space_cost.expected(*gate_probabilities(space)))


def check_alternation(epochs: tuple[int, int], cost_weight: float, alpha_learning_rate: float) -> None:
    """Raise AclaError where weights and alphas cannot be trained in turn with these arguments."""
    if not isinstance(epochs, Sequence) or len(epochs) != 2 or epochs[0] < 0 or epochs[1] < 1:
        raise AclaError(f"epochs must be (stage 1 >= 0, stage 2 >= 1), not {epochs}")
    if not (cost_weight >= 0 and math.isfinite(cost_weight)):
        raise AclaError(f"cost_weight must be 0 or more, not {cost_weight}: it is lambda of Eq. 14")
    if not alpha_learning_rate > 0:
        raise AclaError(f"alpha_learning_rate must be above 0, not {alpha_learning_rate}")


class OneShotRun(NamedTuple):
    """What is left of a one-shot search: decisions, how sure of them it was, epochs, and if these are all."""

    sample: dict[str, Any]
    probabilities: dict[int, float]
    history: list[dict[str, Any]]
    cost: SpaceCost
    is_complete: bool = True


def run_one_shot(
    space: CrossLayerSpace,
    strategy: OneShotStrategy,
    evaluator: Lightning,
    *,
    folder: Path | None = None,
    limit: Limit | None = None,
    time_limit: float | None = None,
    keep_checkpoint: bool = False,
) -> OneShotRun:
    """Train the supernet and derive the architecture; see :func:`acla_nas.search`.

    With a folder, ``search.ckpt`` there is written after every epoch, and a search that finds it goes on
    from it; at the end it is removed, unless it is to be kept, or the time limit has ended the search. Of an
    evaluator's several processes the main one derives the architecture, and all return it.
    """
    if not all(isinstance(gate, (InsertGate, KeyGate)) for gate in (*space.insert_gates, space.key_gate)):
        raise AclaError(
            "this space has been searched, and its gates are those of that strategy: make a new one; "
            "new.network.load_state_dict(old.network.state_dict()) gives it the weights"
        )
    checkpoint = None if folder is None else checkpoint_of(folder, "search")
    resume = {} if checkpoint is None else resume_from(checkpoint)
    callbacks = evaluator.trainer.callbacks
    seed_epochs(evaluator.trainer, getattr(strategy, "seed", 0))
    callbacks.insert(1, _GateLog(space, strategy))
    patches = getattr(evaluator.train_dataloaders, "dataset", None)
    if isinstance(patches, PatchDataset):
        batch_size = evaluator.train_dataloaders.batch_size
        shown = any(isinstance(c, EpochReport) and c.show for c in callbacks)
        callbacks.append(FitMemory(space.network, patches[0][0], batch_size, show=shown))
    if time_limit is not None:
        callbacks.append(_TimeOfCall(timedelta(minutes=time_limit), interval="epoch", verbose=False))
    if checkpoint is not None:
        callbacks.append(Checkpoint(checkpoint))
    evaluator.fit_kwargs.update(resume)

    with told_in_one_line(evaluator.trainer):
        strategy(RawFormatModelSpace(space, evaluator), _InProcessEngine())

    share_buffers(space)
    epochs, wanted = evaluator.trainer.current_epoch, evaluator.trainer.max_epochs or 0
    is_complete = time_limit is None or epochs >= wanted
    if not is_complete and epochs == 0:
        raise AclaError(f"the search has run no epoch within time_limit={time_limit}: give it more minutes")
    if not is_complete and is_main():
        left = "" if checkpoint is None else ": the same search in the same folder goes on"
        say(f"time_limit ended the search after epoch {epochs} of {wanted}{left}")
    run = from_main(lambda: _derive(space, strategy, evaluator, limit))
    if checkpoint is not None and is_complete and not keep_checkpoint:
        forget(checkpoint)
    return run._replace(is_complete=is_complete)


def _derive(
    space: CrossLayerSpace, strategy: OneShotStrategy, evaluator: Lightning, limit: Limit | None
) -> OneShotRun:
    """Read the architecture off the gates, within the limit."""
    module = strategy.oneshot_module
    sample = module.export()
    exported = module.export_probs()
    probabilities = {j: exported[f"insert/{j}"][True] for j in space.network.paths}
    if limit is not None:
        sample = limit.cut(sample, {j: p for j, p in probabilities.items() if sample[f"insert/{j}"]})
    return OneShotRun(sample, probabilities, epoch_history(evaluator), space_cost(strategy, space))


def space_cost(strategy: OneShotStrategy, space: CrossLayerSpace) -> SpaceCost:
    """Return the cost that a strategy searches under; MACs where it has none, as NNI's own have not."""
    own = getattr(strategy, "space_cost", None)
    return own if isinstance(own, SpaceCost) else SpaceCost(space, costs.get("macs"))


class _TimeOfCall(pl.callbacks.Timer):
    """Ends a training after so long a time: of this call, whatever those took that it goes on from."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing to go on with."""
        return {}


class _InProcessEngine(SequentialExecutionEngine):
    """NNI's in-process engine, which leaves the connection of a trial to NNI's manager alone."""

    def _run_single_model(self, model: Any) -> None:
        model.execute()


class _GateLog(pl.Callback):
    """Logs at the end of every epoch where the gates stand: how many are open, costs and probabilities.

    ``cost`` is the expected one, ``derived_cost`` that of the architecture that the gates stand for;
    ``probability/<j>`` is of a module at position j, ``keys/<K>`` of each number of keys, where there is a
    choice.
    """

    def __init__(self, space: CrossLayerSpace, strategy: OneShotStrategy) -> None:
        self.space, self.strategy = space, strategy
        self.cost: SpaceCost | None = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Log after the last batch, so that it is among the epoch's metrics."""
        if not trainer.is_last_batch:
            return
        self.cost = self.cost or space_cost(self.strategy, self.space)
        inserted, of_keys = gate_probabilities(self.space)
        sample = pl_module.export()
        log = {
            "open": float(sum(sample[f"insert/{j}"] for j in self.space.network.paths)),
            "cost": float(self.cost.expected(inserted, of_keys)),
            "derived_cost": self.cost.of(sample),
        }
        log |= {f"probability/{j:02d}": p for j, p in zip(self.space.network.paths, inserted.tolist())}
        if len(of_keys) > 1:
            log |= {f"keys/{k:02d}": p for k, p in zip(self.cost.num_keys, of_keys.tolist())}
        pl_module.log_dict(log)


def gate_probabilities(space: CrossLayerSpace) -> tuple[Tensor, Tensor]:
    """Return the probability of each module and of each number of keys, with gradients in the alphas."""
    inserted = torch.stack([gate.probability() for gate in space.insert_gates])  # type: ignore[operator]
    return inserted, space.key_gate.probability()
