"""Faults of a training, each caused: what ends, what is said, and what is there afterwards."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_experiment import tiny
from torch import Tensor

from acla_nas import experiment
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.training import make_evaluator
from acla_nas.training.restoration import RestorationModule


class Spoilt:
    """Makes some steps of a training what they should not be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int], how: str) -> None:
        self.steps, self.how, self.number = steps, how, 0
        step = RestorationModule.training_step

        def training_step(module: Any, batch: Any, batch_idx: int) -> Tensor:
            loss = step(module, batch, batch_idx)
            self.number += 1
            return self.spoil(module, loss) if self.number in self.steps else loss

        monkeypatch.setattr(RestorationModule, "training_step", training_step)

    def spoil(self, module: Any, loss: Tensor) -> Tensor:
        if self.how == "loss":
            return loss * float("nan")
        weight = next(p for p in module.model.parameters() if p.requires_grad)
        hook = weight.register_hook(lambda gradient: self._infinite(hook, gradient))
        return loss

    def _infinite(self, hook: Any, gradient: Tensor) -> Tensor:
        hook.remove()
        return gradient * float("inf")


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_search_stops_before_a_step_that_is_not_finite(
    how: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of the run: 2 of stage 1, then of alphas and weights in turn."""
    config = tiny(images, tmp_path / "run")
    Spoilt(monkeypatch, {6} if how == "gradient" else {5}, how)
    with pytest.raises(AclaError) as error:
        experiment.run_search(config)
    told = str(error.value)
    assert "loss or gradient is not finite (loss " in told and "\n" not in told
    assert "at step 2 of epoch 2, patches 2 to 3" in told
    assert f"the last good checkpoint is {tmp_path}/run/search.ckpt, of epoch 1" in told
    assert "nonfinite=skip" in told
    monkeypatch.undo()
    skipping = config.model_copy(update={"search": config.search.model_copy(update={"nonfinite": "skip"})})
    assert len(experiment.run_search(skipping).history) == 3  # goes on, with another say on this


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_steps_are_skipped_and_counted(
    how: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"epochs": 2, "steps_per_epoch": 3, "nonfinite": "skip"}
    Spoilt(monkeypatch, {2, 3}, how)
    with pytest.warns(
        AclaWarning, match="2 steps of epoch 1 left out: their loss or gradient was not finite"
    ):
        experiment.run_training(tiny(images, tmp_path / "run", train=train))
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    at = header.split(",").index("skipped_steps")
    assert [row.split(",")[at] for row in rows] == ["2.0", "0.0"]
    network = experiment.load_model(tmp_path / "run")
    assert all(p.isfinite().all() for p in network.parameters())


def test_skipping_leaves_weights_and_the_optimizer_as_they_are(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps skipped: the training ends with the weights that it began with."""
    train = {"epochs": 1, "steps_per_epoch": 2, "nonfinite": "skip", "learning_rate": 1.0}
    Spoilt(monkeypatch, {1, 2}, "loss")
    with pytest.warns(AclaWarning, match="2 steps of epoch 1"):
        experiment.run_training(tiny(images, tmp_path / "skipped", train=train))
    monkeypatch.undo()
    train = {"epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-30}
    experiment.run_training(tiny(images, tmp_path / "fresh", train=train))
    fresh, skipped = (experiment.load_model(tmp_path / run).state_dict() for run in ("fresh", "skipped"))
    assert all(torch.equal(fresh[name], skipped[name]) for name in fresh)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(AclaError, match="unknown nonfinite 'ignore'"):
        make_evaluator(experiment.make_task(tiny(Path(), Path())), nonfinite="ignore")


def test_no_memory_left(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is asked for more than there is, in the second epoch."""
    step = RestorationModule.training_step

    def hungry(module: Any, *arguments: Any) -> Tensor:
        if module.trainer.current_epoch == 1:
            torch.empty(2**50)
        return step(module, *arguments)

    monkeypatch.setattr(RestorationModule, "training_step", hungry)
    with pytest.raises(AclaError, match=r"no memory is left .* of epoch 1: use a smaller data.batch_size"):
        experiment.run_training(tiny(images, tmp_path / "run"))
    assert (tmp_path / "run" / "training.ckpt").exists()


def test_a_data_worker_that_is_killed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"epochs": 2, "steps_per_epoch": 50}
    config = tiny(images, tmp_path / "run", data={"workers": 1}, train=train)
    step, killed = RestorationModule.training_step, []

    def kill_the_worker(module: Any, *arguments: Any) -> Tensor:
        if module.trainer.current_epoch == 1 and not killed:
            (worker,) = module.trainer.fit_loop._data_fetcher.combined_loader._iterator.iterators[0]._workers
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.join())
        return step(module, *arguments)

    monkeypatch.setattr(RestorationModule, "training_step", kill_the_worker)
    with pytest.raises(AclaError, match=r"loads data has died \(.*\); .* of epoch 1: give the command again"):
        experiment.run_training(config)
