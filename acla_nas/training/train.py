"""train: retraining a derived network, or the bare baseline, under one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from acla_nas.nni_nas import Lightning
from acla_nas.training.checkpoint import Checkpoint, forget, resume_from, seed_epochs
from acla_nas.training.evaluator import epoch_history
from acla_nas.training.faults import told_in_one_line
from acla_nas.training.processes import share_buffers


def train(
    network: nn.Module,
    evaluator: Lightning,
    *,
    checkpoint: str | Path | None = None,
    keep_checkpoint: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Train a network in place with an evaluator of :func:`make_evaluator`.

    Unlike ``evaluator.evaluate(network)``, validation patches are left unused: whole validation images
    are scored after every epoch.

    Args:
        network: to train.
        evaluator: data and recipe; for one training.
        checkpoint: a file that is written after every epoch; where it is there already, the training goes
            on from it; so it does from the one before, kept beside it, where the file is damaged.
        keep_checkpoint: leave it there at the end, until what was trained is safe; then call
            :func:`acla_nas.training.checkpoint.forget`.
        seed: of what the network draws at random in training.

    Returns:
        One dict per epoch: epoch, train_loss, val_psnr (dB), seconds.

    Raises:
        AclaError: an evaluator that has been used.
    """
    path = None if checkpoint is None else Path(checkpoint)
    resume = {} if path is None else resume_from(path)
    seed_epochs(evaluator.trainer, seed)
    if path is not None:
        evaluator.trainer.callbacks.append(Checkpoint(path))
    evaluator.module.set_model(network)
    with told_in_one_line(evaluator.trainer):
        evaluator.trainer.fit(evaluator.module, evaluator.train_dataloaders, **resume)
    share_buffers(network)
    if path is not None and not keep_checkpoint:
        forget(path)
    return epoch_history(evaluator)
