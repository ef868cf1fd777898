"""Resuming: a training that is stopped after any epoch ends as it would have without."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import acla_nas
from acla_nas.errors import AclaError
from acla_nas.tasks import SuperResolution
from acla_nas.training import make_evaluator, train


class Stop(pl.Callback):
    """Ends the process, as far as Lightning can tell, when an epoch begins."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("stopped")


def trained(checkpoint: Path, images: Path, stop: int | None = None) -> tuple[nn.Module, list[dict]]:
    """Train a module whose key gates are noisy, from the same weights each time."""
    pl.seed_everything(0, verbose=False)
    space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2, gate_noise=True)
    network = space.freeze({"insert/1": True, "insert/2": True, "keys": 2})
    evaluator = make_evaluator(
        SuperResolution(2),
        train=str(images),
        validation=str(images),
        epochs=3,
        steps_per_epoch=2,
        batch_size=2,
        patch_size=8,
        device="cpu",
        progress=False,
    )
    if stop is not None:
        evaluator.trainer.callbacks.append(Stop(stop))
    return network, train(network, evaluator, checkpoint=checkpoint, seed=3)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_resumed_is_uninterrupted(stop: int, images: Path, tmp_path: Path) -> None:
    expected, history = trained(tmp_path / "whole.ckpt", images)
    checkpoint = tmp_path / "training.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        trained(checkpoint, images, stop)
    assert checkpoint.exists() == (stop > 0)
    network, resumed = trained(checkpoint, images)
    for name, weight in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight), name
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in h] for h in (resumed, history)
    ]
    assert without_time[0] == without_time[1] and len(resumed) == 3


def test_all_processes_must_find_the_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acla_nas.training.checkpoint.from_main", lambda _: 2)  # it has read one
    with pytest.raises(AclaError, match="has 2 epochs for the main process and 0 for process 0"):
        trained(tmp_path / "training.ckpt", images)


def test_nothing_is_left_at_the_end(images: Path, tmp_path: Path) -> None:
    trained(tmp_path / "training.ckpt", images)
    assert list(tmp_path.iterdir()) == []
