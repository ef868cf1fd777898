"""What breaks a training is said in one line: numbers that are not finite, no memory, a dead data worker."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from acla_nas._version import __version__
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.training.checkpoint import Checkpoint
from acla_nas.training.out_of_memory import is_out_of_memory
from acla_nas.training.processes import is_main


class FiniteSteps(pl.Callback):
    """Lets an optimizer take no step of which the loss or a gradient is NaN or infinite.

    Either the training stops, with the weights and the checkpoint of before, or the step is left out: the
    optimizer's state stays too. How many were left out in an epoch is logged as ``skipped_steps``.

    Args:
        skip: leave such steps out, with one warning an epoch.
        batch_size: patches per batch, in all processes together, to name those of the batch.
    """

    def __init__(self, *, skip: bool, batch_size: int) -> None:
        self.skip, self.batch_size = skip, batch_size
        self._loss: Tensor | None = None
        self._batch = self._skipped = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count anew."""
        self._skipped = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note which batch it is."""
        self._batch = batch_idx

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss."""
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Stop, or take the step's gradients away, if they or the loss are not finite."""
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not weights or self._loss is None:
            return
        norms = torch.stack(torch._foreach_norm([p.grad for p in weights]))
        finite = bool((norms.sum() + self._loss).isfinite())
        if trainer.world_size > 1:  # all or none
            finite = trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            return
        if not self.skip:
            raise AclaError(self._told(trainer))
        self._skipped += 1
        for weight in weights:
            weight.grad = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Say after an epoch's last batch how many steps were left out."""
        if trainer.is_last_batch and self.skip:
            pl_module.log("skipped_steps", float(self._skipped))
            if self._skipped and is_main():
                warnings.warn(
                    f"{self._skipped} steps of epoch {trainer.current_epoch + 1} left out: their loss or "
                    "gradient was not finite",
                    AclaWarning,
                    stacklevel=2,
                )

    def _told(self, trainer: pl.Trainer) -> str:
        assert self._loss is not None
        first = self._batch * self.batch_size
        return (
            f"loss or gradient is not finite (loss {float(self._loss):.4g}) at step {self._batch + 1} of "
            f"epoch {trainer.current_epoch + 1}, patches {first} to {first + self.batch_size - 1}; "
            f"{_last_good(trainer)}: use a lower learning_rate or a gradient_clip, or leave such steps out "
            "with nonfinite=skip"
        )


@contextmanager
def told_in_one_line(trainer: pl.Trainer) -> Iterator[None]:
    """Turn what ends a training from outside, which the user can mend, into an AclaError.

    Args:
        trainer: of the training, which knows its checkpoint.

    Raises:
        AclaError: no memory is left, a process that loads data has died, the system cannot read or write a
            file, or a checkpoint is of a training that this one cannot go on with.
    """
    try:
        yield
    except OSError as error:
        told_before = error.__context__
        if isinstance(told_before, AclaError):  # the same disk is full for TensorBoard, a moment later
            raise told_before from None
        raise AclaError(
            f"cannot use {error.filename or 'a file of the run'}: {error.strerror or error}; "
            f"{_last_good(trainer)}: mend that and give the command again"
        ) from error
    except (RuntimeError, MemoryError) as error:
        told = str(error)
        if is_out_of_memory(error):
            reason = (told.splitlines() or ["MemoryError"])[0][:160]
            raise AclaError(
                f"no memory is left ({reason}); {_last_good(trainer)}: use a smaller data.batch_size or "
                "data.patch_size, more devices, or a machine with more memory"
            ) from error
        if dead := re.search(r"DataLoader worker .*", told):
            raise AclaError(
                f"a process that loads data has died ({dead[0].rstrip('.')}); {_last_good(trainer)}: give "
                "the command again, with fewer data.workers if memory is short"
            ) from error
        _refuse_checkpoint(trainer, error)
        raise
    except (LookupError, TypeError, ValueError) as error:
        if not isinstance(error, AclaError):
            _refuse_checkpoint(trainer, error)
        raise


def _refuse_checkpoint(trainer: pl.Trainer, error: Exception) -> None:
    """Raise AclaError where it was in going on from a checkpoint that an error came."""
    written = _written(trainer)
    if written is None or written.restored or trainer.ckpt_path is None:
        return
    by = torch.load(trainer.ckpt_path, map_location="cpu", weights_only=True).get(
        "acla-nas", "an earlier one"
    )
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    raise AclaError(
        f"cannot go on from checkpoint {trainer.ckpt_path}, which acla_nas {by} has written; this is "
        f"{__version__} ({reason}): go on with that version, or remove the file to begin anew"
    ) from error


def _written(trainer: pl.Trainer) -> Checkpoint | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, Checkpoint)), None)


def _last_good(trainer: pl.Trainer) -> str:
    """Say what there is to go on from."""
    written = _written(trainer)
    if written is None or not written.path.exists():
        return "no checkpoint is there yet"
    return f"the last good checkpoint is {written.path}, of epoch {trainer.current_epoch}"
