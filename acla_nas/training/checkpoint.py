"""What makes a training one that can be resumed: random states by the epoch, and a checkpoint after each."""

from __future__ import annotations

import inspect
import os
import pickle
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from acla_nas._version import __version__
from acla_nas.durable import replacing
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.interruption import asked, install_handlers, stop_if_asked
from acla_nas.training.processes import from_main, is_main


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


def seed_epochs(trainer: pl.Trainer, seed: int) -> None:
    """Let a trainer set the random state in its epochs.

    Raises:
        AclaError: it does so already, for what it has trained before: it would take up that training's end.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, SeededEpochs) for callback in callbacks):
        raise AclaError(
            "this evaluator has been used: make one for each search and training, by make_evaluator"
        )
    callbacks.insert(0, SeededEpochs(seed))


class Checkpoint(pl.callbacks.Checkpoint):
    """Writes the whole state of a training after every epoch into one file, and keeps the one before.

    Args:
        path: of the file; a new one replaces it only once it is safely on the disk. The one before is kept
            beside it, see :func:`previous`.

    Attributes:
        restored: has the training begun, with what an earlier one had left, if anything?
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restored = False

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note who writes it."""
        checkpoint["acla-nas"] = __version__

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that all processes have found the same checkpoint, or none."""
        self.restored = True
        epoch, of_main = trainer.current_epoch, from_main(lambda: trainer.current_epoch)
        if epoch != of_main:
            raise AclaError(
                f"{self.path} has {of_main} epochs for the main process and {epoch} for process "
                f"{trainer.global_rank}: put the run folder where all machines can read it"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state. Lightning calls this after all other callbacks have had their turn."""
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.path, weights_only=False)  # in which the main one alone writes
            return
        with replacing(self.path) as partial:
            trainer.save_checkpoint(partial, weights_only=False)  # optimizers and loops too
            if self.path.exists():
                os.replace(self.path, previous(self.path))


class StopWhenAsked(pl.Callback):
    """Ends a training between two steps when a signal has asked for it; see :mod:`acla_nas.interruption`.

    An epoch's last step is followed by its checkpoint first.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back from Lightning, which ends epochs in their middle too."""
        install_handlers()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs."""
        self._stop(trainer, f"stopped after epoch {trainer.current_epoch}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop within an epoch."""
        if not trainer.is_last_batch:
            epoch = trainer.current_epoch + 1
            self._stop(trainer, f"stopped after step {batch_idx + 1} of epoch {epoch}, which begins anew")

    def _stop(self, trainer: pl.Trainer, what: str) -> None:
        stop = asked() is not None
        if trainer.world_size > 1:  # all at the same step, whichever of them was asked
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            stop_if_asked(what)
            raise SystemExit(1)  # another process was asked, and says so


def checkpoint_of(folder: str | Path, kind: str) -> Path:
    """Return where a "search" or a "training" keeps its checkpoint: ``search.ckpt``, ``training.ckpt``."""
    return Path(folder, f"{kind}.ckpt")


def previous(checkpoint: Path) -> Path:
    """Return the path of the checkpoint before the last."""
    return checkpoint.with_name(f"{checkpoint.stem}.previous{checkpoint.suffix}")


def existing(checkpoint: Path) -> list[Path]:
    """Return those that are there, of a checkpoint and the one before, the last first."""
    return [path for path in (checkpoint, previous(checkpoint)) if path.exists()]


def forget(checkpoint: Path) -> None:
    """Remove the checkpoints of a run whose results are safe."""
    if is_main():
        for path in (previous(checkpoint), checkpoint):
            path.unlink(missing_ok=True)


def resume_from(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments of ``trainer.fit`` that go on from a checkpoint; none where there is none.

    A damaged checkpoint is warned of, and the one before takes its place.

    Raises:
        AclaError: all are damaged; or one holds more than numbers, and is not loaded.
    """
    there = existing(checkpoint)
    for path in there:
        damage = _damage(path)
        if damage is None:
            arguments: dict[str, Any] = {"ckpt_path": str(path)}
            if "weights_only" in inspect.signature(pl.Trainer.fit).parameters:  # Lightning 2.6 and later
                arguments["weights_only"] = True
            return arguments
        if path is there[-1]:
            raise AclaError(
                f"checkpoint {path} is damaged ({damage}), with none before it: remove it to begin anew"
            )
        if is_main():
            warnings.warn(
                f"checkpoint {path} is damaged ({damage}): going on from the one before, an epoch earlier",
                AclaWarning,
                stacklevel=2,
            )
    return {}


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's file, if something is.

    Its checksums are compared, and it is loaded once by PyTorch's restricted unpickler: Lightning before
    2.6 would run the code in a file that holds some.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        return str(error).rstrip(".")
    if torn is not None:
        return f"the checksum of {torn} is wrong"
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"code ({named[1]})" if named else "something else than the state of a training"
        raise AclaError(
            f"checkpoint {path} holds {what}, and is not loaded: no run of acla_nas wrote it; remove it"
        ) from None
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        return str(error).splitlines()[0]
    return None
