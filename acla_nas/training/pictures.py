"""TrainingPictures: for TensorBoard, where the gates stand, and what the network restores by now."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from acla_nas.nni_nas import LightningModule
from acla_nas.tasks import Task
from acla_nas.training.epoch_report import EpochReport, network_of

_PICTURES = 10  # of each kind in a training: as many as TensorBoard shows
_TAG = "degraded, restored, original"


class TrainingPictures(pl.Callback):
    """Adds pictures to TensorBoard after some ten of the epochs, the last among them.

    ``probabilities`` has the probability of a module at every position over all epochs so far, of a search;
    ``degraded, restored, original`` a part of the first validation image as it says, from left to right. A
    chart of all positions' probabilities, as lines, is under "Custom scalars".

    Args:
        task: what degrades.
        validation: image files.
        report: of the same training, which comes before this among the callbacks.
    """

    def __init__(self, task: Task, validation: list[Path], report: EpochReport) -> None:
        self.task, self.validation, self.report = task, validation, report

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        """Draw, in the main process."""
        logger, epoch = trainer.logger, trainer.current_epoch + 1
        if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        if not is_due(epoch, trainer.max_epochs or epoch):
            return
        from acla_nas.report.charts import draw_probabilities, probabilities
        from acla_nas.report.crops import restore_crop, shown

        writer = logger.experiment
        if probabilities(self.report.history):
            writer.add_figure("probabilities", draw_probabilities(self.report.history), epoch)
            chart = {"probability of a module": ["Multiline", ["probability/.*"]]}
            writer.add_custom_scalars({"search": chart})
        if self.validation:
            network = {"restored": network_of(pl_module)}
            crop = restore_crop(self.task, self.validation[0], network, device=str(pl_module.device))
            row = (shown(crop.degraded, self.task.scale), crop.restored["restored"], crop.original)
            colour = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in row]  # where one is grey
            writer.add_image(_TAG, np.concatenate(colour, axis=1), epoch, dataformats="HWC")


def is_due(epoch: int, epochs: int) -> bool:
    """Is there a picture after this epoch of so many, counted from 1?

    Example:
        >>> [epoch for epoch in range(1, 26) if is_due(epoch, 25)]
        [3, 6, 9, 12, 15, 18, 21, 24, 25]
    """
    return epoch % math.ceil(epochs / _PICTURES) == 0 or epoch == epochs
