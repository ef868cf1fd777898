"""What makes a training one that can be resumed: random states by the epoch, and a checkpoint after each."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from acla_nas.errors import AclaError
from acla_nas.training.processes import from_main


class SeededEpochs(pl.Callback):
    """Sets PyTorch's random state at the start of every epoch, from a seed and the epoch.

    So what happens in an epoch does not depend on whether the ones before it ran in this process.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the random state."""
        torch.manual_seed((self.seed * 1_000_003 + trainer.current_epoch) % 2**63)


class Checkpoint(pl.callbacks.Checkpoint):
    """Writes the whole state of a training after every epoch into one file, never half of it.

    Args:
        path: of the file; a new one replaces it only once it is safely on the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that all processes have found the same checkpoint, or none."""
        epoch, of_main = trainer.current_epoch, from_main(lambda: trainer.current_epoch)
        if epoch != of_main:
            raise AclaError(
                f"{self.path} has {of_main} epochs for the main process and {epoch} for process "
                f"{trainer.global_rank}: put the run folder where all machines can read it"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state. Lightning calls this after all other callbacks have had their turn."""
        partial = self.path.with_name(self.path.name + ".partial")
        trainer.save_checkpoint(partial, weights_only=False)  # optimizers and loops too
        if not trainer.is_global_zero:
            return
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, self.path)


def resume_from(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments of ``trainer.fit`` that go on from a checkpoint; none where there is none."""
    if not checkpoint.exists():
        return {}
    arguments: dict[str, Any] = {"ckpt_path": str(checkpoint)}
    if "weights_only" in inspect.signature(pl.Trainer.fit).parameters:  # Lightning 2.6 and later
        arguments["weights_only"] = True
    return arguments
