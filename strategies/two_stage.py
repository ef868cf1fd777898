"""The paper's two-stage differentiable search (Section 3.2, "Search Procedure")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acla_nas import cost as costs
from acla_nas.cost import CostModel
from acla_nas.errors import AclaError
from acla_nas.gates import GumbelInsertGate, GumbelKeyGate, InsertGate, KeyGate
from acla_nas.nni_nas import BaseOneShotLightningModule, LightningModule, OneShotStrategy
from acla_nas.one_shot import UnderCost, check_alternation


class TwoStage(UnderCost, OneShotStrategy):
    """Train the supernet's weights alone, then alternate steps of weights and of the gates' alphas.

    Stage 1 trains the weights, each step with a fresh sample of the gates. Stage 2 adds, before each
    step of the weights on training data, a step of the alphas on validation data, which descends

        L_task + cost_weight * log(cost + cheapest module)                                  (Eq. 14)

    where cost is the expected cost over the gates; the cheapest single module inside the logarithm
    keeps it finite when nothing is inserted. The temperature of the gates falls geometrically
    over stage 2. The derived architecture inserts a module where alpha_j > 0.

    Args:
        epochs: of stage 1 and of stage 2.
        cost: "macs", "paper", .. or a :class:`acla_nas.cost.CostModel`.
        cost_weight: lambda, at least 0; the task's loss is in (squared) grey levels.
        temperature: of the insert gates at the start and at the end of stage 2; it shapes gradients only.
        alpha_learning_rate: of Adam on the alphas.
        initial_alpha: of every gate; 0 opens half of them.
        seed: of what the gates draw.

    Raises:
        AclaError: an argument out of range, or an unknown cost model.

    Example:
        >>> TwoStage(epochs=(20, 40), cost="macs", cost_weight=0.15).max_epochs
        60
    """

    def __init__(
        self,
        epochs: tuple[int, int] = (20, 40),
        cost: str | CostModel = "macs",
        cost_weight: float = 0.15,
        temperature: tuple[float, float] = (2.0, 0.5),
        alpha_learning_rate: float = 1e-2,
        initial_alpha: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_alternation(epochs, cost_weight, alpha_learning_rate)
        if len(temperature) != 2 or min(temperature) <= 0:
            raise AclaError(f"temperature must be (start, end), both above 0, not {tuple(temperature)}")
        self.warmup_epochs, self.search_epochs = epochs
        self.max_epochs = sum(epochs)
        self.cost = costs.get(cost) if isinstance(cost, str) else cost
        self.cost_weight = cost_weight
        self.temperature = temperature
        self.alpha_learning_rate = alpha_learning_rate
        self.initial_alpha = initial_alpha
        self.seed = seed

    def default_mutation_hooks(self) -> list[Any]:
        """Turn the space's gates into Gumbel gates."""
        return [self._to_gumbel_gate, *super().default_mutation_hooks()]

    def _to_gumbel_gate(
        self, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> nn.Module | None:
        if isinstance(module, InsertGate):
            return GumbelInsertGate(module, self.initial_alpha)
        return GumbelKeyGate(module) if isinstance(module, KeyGate) else None

    def train_dataloader(self, train_dataloader_fn: Any, val_dataloader_fn: Any) -> Any:
        """Pair each training batch with a validation batch."""
        return {"train": train_dataloader_fn(), "val": val_dataloader_fn()}

    def val_dataloader(self, train_dataloader_fn: Any, val_dataloader_fn: Any) -> Any:
        """Leave Lightning nothing to validate on: the validation batches train the alphas."""
        return None

    def configure_oneshot_module(self, training_module: LightningModule) -> TwoStageModule:
        """Return the Lightning module that runs both stages."""
        return TwoStageModule(training_module, self)


class TwoStageModule(BaseOneShotLightningModule):
    """One step of the two-stage search: of the alphas, once stage 2 has begun, then of the weights."""

    def __init__(self, training_module: LightningModule, strategy: TwoStage) -> None:
        super().__init__(training_module)
        self.strategy = strategy

    @property
    def searching(self) -> bool:
        """Has stage 2 begun?"""
        return self.trainer.current_epoch >= self.strategy.warmup_epochs

    @property
    def insert_gates(self) -> list[GumbelInsertGate]:
        """The gates of the positions, in order."""
        return list(self.model.insert_gates)

    def on_train_epoch_start(self) -> None:
        """Set the temperature of the gates for this epoch."""
        start, end = self.strategy.temperature
        steps = max(1, self.strategy.search_epochs - 1)
        done = max(0, self.trainer.current_epoch - self.strategy.warmup_epochs) / steps
        self.temperature = start * (end / start) ** min(1.0, done)
        for gate in [*self.insert_gates, self.model.key_gate]:
            gate.temperature = self.temperature
        return super().on_train_epoch_start()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Run one step of each kind that the stage asks for."""
        if self.searching:
            self._step_alphas(batch["val"], batch_idx)
        loss = self.training_module.training_step(batch["train"], batch_idx)
        loss = loss["loss"] if isinstance(loss, dict) else loss
        self.advance_optimization(loss, batch_idx)
        self.advance_lr_schedulers(batch_idx)
        if self.trainer.is_last_batch:
            self.log("temperature", self.temperature)

    def _step_alphas(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.architecture_optimizers()
        log, self.training_module.log = self.training_module.log, _no_log
        self._set_differentiable(True)
        self.toggle_optimizer(optimizer)
        try:
            loss = self.training_module.training_step(batch, batch_idx)
            loss = loss["loss"] if isinstance(loss, dict) else loss
            if self.strategy.cost_weight:
                loss = loss + self.strategy.cost_weight * self.log_cost()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        finally:
            self.untoggle_optimizer(optimizer)
            self._set_differentiable(False)
            self.training_module.log = log

    def log_cost(self) -> Tensor:
        """Return log(expected cost + cheapest module), with its gradient in the alphas."""
        return self.strategy.log_cost(self.model)

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return the alphas."""
        return [p for m in self.supernet_modules() for p in m.arch_parameters()]

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam on the alphas."""
        return torch.optim.Adam(self.arch_parameters(), lr=self.strategy.alpha_learning_rate)

    def postprocess_weight_optimizers(self, optimizers: Any) -> Any:
        """Take the alphas out of the optimizer of the weights."""
        optimizer = optimizers["optimizer"] if isinstance(optimizers, dict) else optimizers
        alphas = {id(p) for p in self.arch_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in alphas]
        return optimizers

    def _set_differentiable(self, differentiable: bool) -> None:
        for gate in self.insert_gates:
            gate.differentiable = differentiable


def _no_log(*args: Any, **kwargs: Any) -> None:
    """Keep the task's metrics on validation batches out of those on training batches."""
