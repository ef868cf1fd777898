"""LiveEpochs: the live display of a training, moved by its steps."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from acla_nas.live import LiveDisplay
from acla_nas.training.epoch_report import EpochReport
from acla_nas.training.processes import is_main


class LiveEpochs(pl.Callback):
    """Shows epoch, time left, PSNR, expected cost and open gates at the foot of a terminal.

    Args:
        report: of the same training, which comes before this among the callbacks.
    """

    def __init__(self, report: EpochReport) -> None:
        self.report = report
        self._display: LiveDisplay | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show it, in the main process."""
        if is_main() and trainer.max_epochs:
            done = trainer.current_epoch
            self._display = LiveDisplay("epoch", trainer.max_epochs, done=done)
            self._display.update(done, self.report.figures())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar by a step; the epoch's scoring is the last one."""
        if self._display is not None:
            self._display.update(trainer.current_epoch + (batch_idx + 1) / (trainer.num_training_batches + 1))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch's figures."""
        if self._display is not None:
            self._display.update(trainer.current_epoch + 1, self.report.figures())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove it."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove it, and leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None
