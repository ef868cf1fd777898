"""train: retraining a derived network, or the bare baseline, under one recipe."""

from __future__ import annotations

from typing import Any

from torch import nn

from acla_nas.nni_nas import Lightning
from acla_nas.training.evaluator import epoch_history


def train(network: nn.Module, evaluator: Lightning) -> list[dict[str, Any]]:
    """Train a network in place with an evaluator of :func:`make_evaluator`.

    Unlike ``evaluator.evaluate(network)``, validation patches are left unused: whole validation images
    are scored after every epoch.

    Returns:
        One dict per epoch: epoch, train_loss, val_psnr (dB), seconds.
    """
    evaluator.module.set_model(network)
    evaluator.trainer.fit(evaluator.module, evaluator.train_dataloaders)
    return epoch_history(evaluator)
