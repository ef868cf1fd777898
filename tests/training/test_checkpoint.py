"""Resuming: a training that is stopped after any epoch ends as it would have without."""

from __future__ import annotations

import inspect
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import acla_nas
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.tasks import SuperResolution
from acla_nas.training import make_evaluator, train
from acla_nas.training.checkpoint import previous


class Stop(pl.Callback):
    """Ends the process, as far as Lightning can tell, when an epoch begins."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("stopped")


def trained(
    checkpoint: Path, images: Path, stop: int | None = None, *, workers: int = 0, **options: Any
) -> tuple[nn.Module, list[dict]]:
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
        workers=workers,
        progress=False,
    )
    if stop is not None:
        evaluator.trainer.callbacks.append(Stop(stop))
    return network, train(network, evaluator, checkpoint=checkpoint, seed=3, **options)


@pytest.mark.parametrize(("stop", "workers"), [(0, 0), (1, 0), (2, 0), (2, 1)])
def test_resumed_is_uninterrupted(stop: int, workers: int, images: Path, tmp_path: Path) -> None:
    expected, history = trained(tmp_path / "whole.ckpt", images)
    checkpoint = tmp_path / "training.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        trained(checkpoint, images, stop, workers=workers)
    assert checkpoint.exists() == (stop > 0)
    network, resumed = trained(checkpoint, images, workers=workers)
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


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut in half":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "a flipped bit":
        at = content.index(b"data/0") + 200
        content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut in half", "empty", "a flipped bit"])
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(
    how: str, images: Path, tmp_path: Path
) -> None:
    expected, _ = trained(tmp_path / "whole.ckpt", images)
    checkpoint = tmp_path / "training.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        trained(checkpoint, images, 2)
    assert previous(checkpoint).exists()
    damage(checkpoint, how)
    with pytest.warns(AclaWarning, match=r"training\.ckpt is damaged \(.*going on from the one before"):
        network, history = trained(checkpoint, images)
    assert all(torch.equal(network.state_dict()[n], w) for n, w in expected.state_dict().items())
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert not checkpoint.exists() and not previous(checkpoint).exists()


def test_a_kill_between_the_two_renames_leaves_the_one_before(images: Path, tmp_path: Path) -> None:
    expected, _ = trained(tmp_path / "whole.ckpt", images)
    checkpoint = tmp_path / "training.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        trained(checkpoint, images, 2)
    checkpoint.unlink()
    network, _ = trained(checkpoint, images)
    assert all(torch.equal(network.state_dict()[n], w) for n, w in expected.state_dict().items())


def test_nothing_but_damaged_checkpoints_is_an_error(images: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.ckpt"
    for path in (checkpoint, previous(checkpoint)):
        path.write_bytes(b"no checkpoint")
    with pytest.warns(AclaWarning), pytest.raises(AclaError, match=r"previous\.ckpt is damaged .* remove it"):
        trained(checkpoint, images)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("weights_only_argument", [True, False])
def test_a_checkpoint_with_code_in_it_is_refused(
    weights_only_argument: bool, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Lightning before 2.6 too, whose ``fit`` loads anything."""
    if not weights_only_argument and "weights_only" in inspect.signature(pl.Trainer.fit).parameters:
        fit = pl.Trainer.fit

        def old_fit(self: Any, model: Any, loader: Any = None, *, ckpt_path: Any = None) -> None:
            fit(self, model, loader, ckpt_path=ckpt_path, weights_only=False)

        monkeypatch.setattr(pl.Trainer, "fit", old_fit)
    checkpoint, trace = tmp_path / "training.ckpt", tmp_path / "trace"
    with pytest.raises(RuntimeError, match="stopped"):
        trained(checkpoint, images, 1)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "evil": Malicious(trace)}, checkpoint)
    with pytest.raises(AclaError, match=r"holds code \(.*system\), and is not loaded") as error:
        trained(checkpoint, images)
    assert "\n" not in str(error.value)
    checkpoint.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(AclaError, match="is damaged"):
        trained(checkpoint, images)
    assert not trace.exists()


@pytest.mark.parametrize("how", ["another weight", "no optimizer", "another optimizer"])
def test_a_checkpoint_of_another_version_is_an_error(how: str, images: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        trained(checkpoint, images, 1)
    content = torch.load(checkpoint, weights_only=True)
    assert content["acla-nas"] == acla_nas.__version__
    content["acla-nas"] = "0.0.7"
    if how == "another weight":
        content["state_dict"] = {f"old.{name}": w for name, w in content["state_dict"].items()}
    elif how == "no optimizer":
        del content["optimizer_states"]
    else:
        content["optimizer_states"][0]["param_groups"][0]["params"].append(99)
    torch.save(content, checkpoint)
    with pytest.raises(AclaError) as error:
        trained(checkpoint, images)
    told = str(error.value)
    assert f"cannot go on from checkpoint {checkpoint}, which acla_nas 0.0.7 has written; this is" in told
    assert "\n" not in told and "remove the file to begin anew" in told


def test_a_finished_training_is_not_repeated_where_its_checkpoint_is_kept(
    images: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "training.ckpt"
    expected, history = trained(checkpoint, images, keep_checkpoint=True)
    network, again = trained(checkpoint, images, stop=0)  # no epoch begins
    assert again == history
    assert all(torch.equal(network.state_dict()[n], w) for n, w in expected.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_at_the_end(images: Path, tmp_path: Path) -> None:
    trained(tmp_path / "training.ckpt", images)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluator_is_for_one_training(images: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 1, "patch_size": 8, "progress": False}
    evaluator = make_evaluator(SuperResolution(2), train=str(images), validation=str(images), **options)
    network = acla_nas.search_spaces.edsr(num_blocks=1, num_channels=4).network
    train(network, evaluator)
    with pytest.raises(AclaError, match="this evaluator has been used: make one for each"):
        train(network, evaluator)
