"""make_evaluator and train: the same patches whatever the workers, disjoint data, and networks that learn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from acla_nas import search, search_spaces
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.strategies import TwoStage
from acla_nas.tasks import SuperResolution
from acla_nas.training import epoch_history, make_evaluator, train
from acla_nas.training.evaluator import default_workers


class Network(nn.Module):
    """Nearest-neighbour upscaling and one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 3, 3, padding=1)
        nn.init.dirac_(self.last.weight)
        nn.init.constant_(self.last.bias, 0.2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.interpolate(x, scale_factor=2))


class Seen(pl.Callback):
    """Notes the patches that the training sees."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.batches.append(torch.cat([part.flatten() for part in batch]).clone())


def evaluator_of(images: Path, **options: Any) -> Any:
    options = {"steps_per_epoch": 2, "batch_size": 2, "patch_size": 8, "epochs": 2, **options}
    options = {"train": str(images), "validation": str(images), "device": "cpu", "progress": False, **options}
    return make_evaluator(SuperResolution(2), **options)


def patches_seen(images: Path, **options: Any) -> Tensor:
    """Return epochs * steps x values."""
    evaluator, seen = evaluator_of(images, **options), Seen()
    evaluator.trainer.callbacks.append(seen)
    train(Network(), evaluator)
    return torch.stack(seen.batches)


def test_patches_depend_on_the_seed_and_not_on_the_workers(images: Path) -> None:
    first = patches_seen(images, workers=0, seed=3)
    assert len(first) == 4
    assert torch.equal(patches_seen(images, workers=0, seed=3), first)
    assert torch.equal(patches_seen(images, workers=2, seed=3), first)
    assert not torch.equal(patches_seen(images, seed=4), first)


def test_every_step_of_every_epoch_sees_other_patches(images: Path) -> None:
    seen = patches_seen(images)
    assert all(not torch.equal(seen[a], seen[b]) for a in range(4) for b in range(a))


def test_weights_and_architecture_learn_from_different_patches(images: Path) -> None:
    """Even where both come from the same folder."""
    evaluator = evaluator_of(images)
    (lq, hq), (val_lq, _) = next(iter(evaluator.train_dataloaders)), next(iter(evaluator.val_dataloaders))
    assert lq.shape == val_lq.shape == (2, 3, 8, 8) and hq.shape == (2, 3, 16, 16)
    assert not torch.equal(lq, val_lq)
    assert len(evaluator.train_dataloaders) == len(evaluator.val_dataloaders) == 2


def test_training_learns_and_is_recorded(images: Path, tmp_path: Path) -> None:
    network = Network()
    evaluator = evaluator_of(images, steps_per_epoch=20, epochs=3, learning_rate=0.02, run_dir=tmp_path)
    history = train(network, evaluator)
    assert history == epoch_history(evaluator) and [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["val_psnr"] > history[0]["val_psnr"] + 1
    assert (tmp_path / "metrics.csv").exists() and any((tmp_path / "tensorboard").iterdir())


def test_nothing_is_written_without_a_run_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(Network(), evaluator_of(images))
    assert list(tmp_path.iterdir()) == []


def test_history_of_an_evaluator_that_keeps_none(images: Path) -> None:
    evaluator = evaluator_of(images)
    evaluator.trainer.callbacks = []
    assert epoch_history(evaluator) == []


def test_unreadable_validation_image_is_skipped_for_good(images: Path, tmp_path: Path) -> None:
    """With a warning at the start, and not an error at the end of the first epoch."""
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "broken.png").touch()
    with pytest.warns(AclaWarning, match=r"image skipped: cannot read image .*broken\.png"):
        evaluator = evaluator_of(images, validation=str(tmp_path / "images"))
    with_broken = train(Network(), evaluator)
    assert [row["val_psnr"] for row in with_broken] == [
        row["val_psnr"] for row in train(Network(), evaluator_of(images))
    ]


@pytest.mark.parametrize("name", ["steps_per_epoch", "batch_size", "epochs"])
def test_numbers_out_of_range(images: Path, name: str) -> None:
    with pytest.raises(AclaError, match=f"{name} must be at least 1, not 0"):
        evaluator_of(images, **{name: 0})


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(AclaError, match=r"holds no images .* data\.train=DIR"):
        evaluator_of(tmp_path, validation="embedded")


def test_workers_are_chosen_from_the_machine(monkeypatch):
    assert default_workers("cpu", 1) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(32)))
    assert [default_workers("cuda", n) for n in (1, 4, 8, 32)] == [8, 7, 3, 0]
    assert default_workers("cpu", 1) == 0


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_precision_of_a_search(precision, dtype):
    space = search_spaces.edsr(2, 2, 8, num_keys=4)
    seen = set()
    space.network.backbone.head.register_forward_hook(
        lambda *given: seen.add((given[0].training, given[2].dtype))
    )
    evaluator = make_evaluator(
        SuperResolution(2),
        steps_per_epoch=2,
        batch_size=2,
        patch_size=12,
        precision=precision,
        progress=False,
    )
    result = search(space, TwoStage(epochs=(1, 1)), evaluator)
    assert (True, dtype) in seen
    assert {p.dtype for p in space.parameters()} == {torch.float32}
    assert all(0 < epoch["train_loss"] < 1e6 for epoch in result.history)
