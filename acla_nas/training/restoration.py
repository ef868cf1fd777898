"""RestorationModule: how a restoration network is trained, as a Lightning module that NNI can search with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acla_nas.attention.open_keys import open_key_shares
from acla_nas.errors import AclaError, unknown_name
from acla_nas.nni_nas import LightningModule
from acla_nas.training.out_of_memory import affordable_loss

# Losses are in grey levels (0 .. 255), so that lambda weighs against errors of the size the paper has.
_LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss}


class RestorationModule(LightningModule):
    """Trains the network that :meth:`set_model` gives it, on batches (lq, hq) of patches in 0 .. 1.

    Args:
        learning_rate: of Adam, at the start.
        loss: "l1" or "mse", in grey levels or their squares.
        schedule: "cosine" (to zero over the whole training, step by step) or "halve" (every
            ``halve_every`` epochs), as the paper has it for search and retraining.
        halve_every: epochs.
        gradient_clip: largest norm of the gradient; none where 0.
        key_cost: what the mean share of open keys of the adaptive modules weighs in the loss of a training,
            at least 0, in the loss's unit.

    Raises:
        AclaError: a learning rate that is not above 0, an unknown loss or schedule.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1e-4,
        loss: str = "l1",
        schedule: str = "cosine",
        halve_every: int = 200,
        gradient_clip: float = 0.0,
        key_cost: float = 0.0,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise AclaError(f"learning_rate must be above 0, not {learning_rate}")
        if loss not in _LOSSES:
            raise unknown_name("loss", loss, _LOSSES)
        if schedule not in ("cosine", "halve"):
            raise unknown_name("schedule", schedule, ["cosine", "halve"])
        if not key_cost >= 0:
            raise AclaError(f"key_cost must be 0 or more, not {key_cost}")
        self.learning_rate, self.loss, self.schedule = learning_rate, loss, schedule
        self.halve_every, self.gradient_clip = halve_every, gradient_clip
        self.key_cost = key_cost

    def forward(self, lq: Tensor) -> Tensor:
        """Return the restored batch."""
        return self.model(lq)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of patches, as :func:`affordable_loss` gives it."""
        lq, hq = batch
        open_keys: Tensor | None = None

        def compute() -> Tensor:
            nonlocal open_keys
            with open_key_shares() as shares:
                loss = _LOSSES[self.loss](self(lq) * 255, hq * 255)
            if not shares:
                return loss
            share = torch.stack(shares).mean()
            open_keys = share.detach()
            return loss + self.key_cost * share if self.key_cost else loss

        loss = affordable_loss(self.model, len(lq), compute)
        if open_keys is not None:
            self.log("open_keys", open_keys, on_step=False, on_epoch=True, sync_dist=True)
        self.log("train_loss", loss.detach(), prog_bar=True, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return the paper's Adam and the schedule of its learning rate."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        on_gpu = all(p.is_cuda for p in weights)  # where one kernel does it, whatever the number of weights
        optimizer = torch.optim.Adam(
            weights, lr=self.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=on_gpu or None
        )
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if self.schedule == "halve":
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, self.halve_every, gamma=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the norm of the gradient of the optimizer's weights."""
        if self.gradient_clip:
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, self.gradient_clip)
