"""make_evaluator: images, recipe and trainer as the NNI evaluator that searches and retraining run on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DistributedSampler

from acla_nas.data import PatchDataset, list_images, split_fold
from acla_nas.errors import AclaError, unknown_name
from acla_nas.nni_nas import DataLoader, Lightning, Trainer
from acla_nas.tasks import Task
from acla_nas.training.checkpoint import StopWhenAsked
from acla_nas.training.epoch_report import EpochReport
from acla_nas.training.faults import FiniteSteps
from acla_nas.training.live_epochs import LiveEpochs
from acla_nas.training.pictures import TrainingPictures
from acla_nas.training.processes import check_processes
from acla_nas.training.restoration import RestorationModule


def make_evaluator(
    task: Task,
    *,
    train: str = "embedded",
    validation: str = "embedded",
    fold: int | None = None,
    folds: int = 5,
    epochs: int = 1,
    steps_per_epoch: int = 1000,
    batch_size: int = 16,
    patch_size: int = 48,
    seed: int = 0,
    workers: int | None = None,
    run_dir: str | Path | None = None,
    device: str = "auto",
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    devices: int = 1,
    nodes: int = 1,
    progress: bool = True,
    nonfinite: str = "stop",
    **recipe: Any,
) -> Lightning:
    """Return an evaluator, of one search or training: patches of both kinds of images, and a trainer.

    A one-shot search trains the weights on the first and the architecture on the second, and sets the
    number of epochs itself; :func:`train` trains a network on the first.

    Args:
        task: degradation and protocol.
        train: folder of training images, or "embedded": a few images to try things out.
        validation: likewise; whole validation images are scored after every epoch.
        fold: where not None, `validation` is not used: the part of the training images that this fold of
            `folds` holds out takes its place (see :func:`acla_nas.data.split_fold`).
        folds: how many such parts there are.
        epochs: of training; a search strategy brings its own.
        steps_per_epoch: batches per epoch.
        batch_size: patches per batch, in all processes together, which share them evenly.
        patch_size: of the degraded patch, in pixels.
        seed: of the order of patches; set the seed of everything else with ``seed_everything``.
        workers: processes that load data, beside each trainer's own; see :func:`default_workers` where None.
        run_dir: where logs and metrics.csv go; nowhere where None.
        device: "auto", "cpu" or "cuda".
        precision: Lightning's: "32-true", or "bf16-mixed" to compute convolutions and products in bfloat16;
            weights, and what adds up to the loss, stay in float32.
        devices: processes per machine, each with a GPU of its own if `device` is one. They train one network
            by Lightning's DDP, with the gradients of the whole batch, so that the number of processes changes
            no more than the order of sums, unless something is drawn for each patch, as by noisy key gates
            and dropout, or batches are normalised.
        nodes: machines; with more than one, torchrun starts the program on each, see docs/scaling.md.
        progress: print a line per epoch, and in a terminal show how far the training is.
        nonfinite: what a loss or gradient that is NaN or infinite does: "stop" the training, or "skip" the
            step, see :class:`acla_nas.training.faults.FiniteSteps`.
        recipe: options of :class:`RestorationModule`: learning_rate, loss, schedule, ..

    Raises:
        AclaError: no usable image, a number out of range, or processes that there are not.
    """
    check_processes(devices, nodes, device, batch_size)
    for name, value in (("steps_per_epoch", steps_per_epoch), ("batch_size", batch_size), ("epochs", epochs)):
        if value < 1:
            raise AclaError(f"{name} must be at least 1, not {value}")
    if nonfinite not in ("stop", "skip"):
        raise unknown_name("nonfinite", nonfinite, ["stop", "skip"])
    processes = devices * nodes
    if workers is None:
        workers = default_workers(device, devices)

    train_paths = list_images(train, "train")
    if fold is None:
        validation_paths = list_images(validation, "validation")
    else:
        train_paths, validation_paths = split_fold(train_paths, fold, folds)

    def patches(paths: Sequence[Path], seed: int) -> PatchDataset:
        return PatchDataset(
            task, paths, patch_size=patch_size, length=steps_per_epoch * batch_size, seed=seed
        )

    train_set = patches(train_paths, seed)
    validation_set = patches(validation_paths, seed + 1)
    run_dir = None if run_dir is None else Path(run_dir)
    csv_path = None if run_dir is None else run_dir / "metrics.csv"
    report = EpochReport(task, validation_set.paths, csv_path=csv_path, show=progress)
    watching: list[pl.Callback] = [LiveEpochs(report)] if progress else []
    if run_dir is not None:
        watching.append(TrainingPictures(task, validation_set.paths, report))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator=device,
        precision=precision,
        devices=devices,
        num_nodes=nodes,
        # A step runs the modules that are switched on: the others' weights have no gradient in it.
        strategy="ddp_find_unused_parameters_true" if processes > 1 else "auto",
        callbacks=[
            StopWhenAsked(),
            _NextPatches([train_set, validation_set]),
            FiniteSteps(skip=nonfinite == "skip", batch_size=batch_size),
            report,
            *watching,
        ],
        logger=_logger(run_dir),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=min(10, steps_per_epoch),
    )

    def loader(patches: PatchDataset) -> Any:
        # Patches are random already; no shuffling keeps them a function of seed, epoch and index. With a
        # generator of its own a loader leaves PyTorch's random state alone.
        # Process r of n takes patches r, r + n, .. of each batch.
        return DataLoader(
            patches,
            batch_size=batch_size // processes,
            sampler=DistributedSampler(patches, processes, trainer.global_rank, shuffle=False),
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
        )

    return Lightning(
        RestorationModule(**recipe),
        trainer,
        train_dataloaders=loader(train_set),
        val_dataloaders=loader(validation_set),
    )


def default_workers(device: str, devices: int) -> int:
    """Return how many processes load data for each trainer, where it is not said.

    With a GPU the cores that trainers leave over, 8 at most. On a CPU none: a patch costs far less than a
    training step on it, and workers would take its time from the trainer.

    Example:
        >>> default_workers("cpu", 1)
        0
    """
    if device == "cpu" or not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores // devices - 1))


def epoch_history(evaluator: Lightning) -> list[dict[str, Any]]:
    """Return what the evaluator's EpochReport recorded; empty where it has none."""
    for callback in evaluator.trainer.callbacks:
        if isinstance(callback, EpochReport):
            return callback.history
    return []


class _NextPatches(pl.Callback):
    """Tells the data sets which epoch it is: of a training that goes on before its workers begin to load."""

    def __init__(self, data: Sequence[PatchDataset]) -> None:
        self.data = data

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._set_epoch(checkpoint["epoch"] + 1)  # at whose end it was written

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._set_epoch(trainer.current_epoch)

    def _set_epoch(self, epoch: int) -> None:
        for patches in self.data:
            patches.set_epoch(epoch)


def _logger(run_dir: Path | None) -> Any:
    if run_dir is None:
        return False
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(run_dir, name="tensorboard", version="")
