"""Running a one-shot strategy on the table of values by which :func:`check_strategy` tests strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from acla_nas.budget import Limit
from acla_nas.candidate import Candidate
from acla_nas.nni_nas import DataLoader, Lightning, LightningModule, Trainer
from acla_nas.one_shot import run_one_shot
from acla_nas.space import CrossLayerSpace
from acla_nas.testing.strategy import table_value, value_of_gates

_STEPS = 5  # of an epoch


class _TableTask(LightningModule):
    """Asks for gates of a high value; the weights have nothing to do."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        super().__init__()
        self.on_step = on_step
        self.epoch = -1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return minus the value of the gates."""
        if self.epoch != self.trainer.current_epoch:
            self.epoch = self.trainer.current_epoch
            self.on_step()
        gates = torch.stack(
            [torch.as_tensor(gate(), dtype=torch.float32) for gate in self.model.insert_gates]
        )
        weights = sum(p.sum() for p in self.model.network.parameters())
        return -value_of_gates(gates) + 0 * weights

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what leaves the weights as they are."""
        return torch.optim.SGD(self.model.parameters(), lr=0.0)


def search_by_epochs(
    strategy: Any,
    space: CrossLayerSpace,
    *,
    folder: Path | None = None,
    limit: Limit | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Sequence[Candidate]:
    """Run a one-shot strategy whose loss is minus the value of its gates; give it to check_strategy.

    Example:
        >>> from acla_nas.strategies import TwoStage
        >>> from acla_nas.testing import table_space
        >>> strategy = TwoStage(epochs=(0, 20), cost_weight=0.0, alpha_learning_rate=0.3)
        >>> [found] = search_by_epochs(strategy, table_space())
        >>> found.arch.positions
        (2, 3, 5)
    """
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    nothing = TensorDataset(torch.zeros(_STEPS, 1))
    loaders = [DataLoader(nothing, batch_size=1, generator=torch.Generator()) for _ in range(2)]
    evaluator = Lightning(
        _TableTask(on_step), trainer, train_dataloaders=loaders[0], val_dataloaders=loaders[1]
    )
    try:
        run = run_one_shot(space, strategy, evaluator, folder=folder, limit=limit)
    except SystemExit as error:  # Lightning turns an interrupt into an exit
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    arch = space.arch(run.sample)
    return [Candidate(arch, table_value(arch.positions), run.cost.of(run.sample))]
