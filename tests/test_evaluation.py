"""Evaluation: baseline and network under the protocol, the table, and the model left as it was."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from acla_nas.data import list_images, load_image, save_image
from acla_nas.errors import AclaError
from acla_nas.evaluation import Evaluation, ImageScore, evaluate
from acla_nas.tasks import SuperResolution


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    image = load_image(list_images("embedded", "test")[0])
    for name, part in (("left", image[:61, :80]), ("right", image[100:160, 200:290])):
        save_image(part, tmp_path / "in" / f"{name}.png")
    return list_images(tmp_path / "in", "test")


class Nearest(nn.Module):
    """Repeats pixels, too bright by less than rounding tells; notes what it was given."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(3).eval()
        self.scale = scale
        self.seen: list[tuple[torch.dtype, float, bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.dtype, x.max().item(), self.training, torch.is_inference_mode_enabled()))
        return nn.functional.interpolate(x, scale_factor=self.scale) + 0.3 / 255


@pytest.mark.parametrize(("scale", "expected"), [(2, 33.66), (3, 30.39), (4, 28.42)])
def test_baseline_on_set5(shared_data: Path, scale: int, expected: float) -> None:
    evaluation = evaluate(None, SuperResolution(scale), list_images(shared_data / "eval/Set5", "test"))
    assert round(evaluation.psnr, 2) == expected
    assert len(evaluation.rows) == 5


def test_model_is_scored_on_its_rounded_output(paths: list[Path], tmp_path: Path) -> None:
    task = SuperResolution(2)
    model = Nearest()
    evaluation = evaluate(model, task, paths, save_dir=tmp_path / "out")
    assert [row.name for row in evaluation.rows] == ["left", "right"]
    for path, row in zip(paths, evaluation.rows, strict=True):
        hq = task.prepare(load_image(path))
        lq = task.degrade(hq, np.random.default_rng(0))
        restored = lq.repeat(2, axis=0).repeat(2, axis=1)
        assert row.psnr == task.psnr(restored, hq)
        assert row.ssim == task.ssim(restored, hq)
        np.testing.assert_array_equal(load_image(tmp_path / "out" / path.name), restored)
    for dtype, largest, training, inference in model.seen:
        assert dtype == torch.float32 and 0.1 < largest <= 1 and not training and inference


@pytest.mark.parametrize("training", [True, False])
def test_model_comes_back_in_its_mode(paths: list[Path], training: bool) -> None:
    model = Nearest()
    model.training = training
    evaluate(model, SuperResolution(2), paths)
    assert model.training is training and not model.frozen.training
    model.scale = 3
    with pytest.raises(AclaError):
        evaluate(model, SuperResolution(2), paths)
    assert model.training is training


def test_wrong_shape_names_shapes_and_image(paths: list[Path]) -> None:
    with pytest.raises(AclaError) as error:
        evaluate(Nearest(scale=3), SuperResolution(2), paths)
    text = str(error.value)
    assert text.startswith(f"image {paths[0]}: ")
    for shape in ("(1, 3, 30, 40)", "(1, 3, 90, 120)", "(1, 3, 60, 80)"):
        assert shape in text


def test_nan_is_an_error_and_no_score(paths: list[Path]) -> None:
    class Diverged(Nearest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * torch.nan

    with pytest.raises(AclaError, match=r"image .*left\.png: .*NaN"):
        evaluate(Diverged(), SuperResolution(2), paths)


def test_unreadable_and_too_small_images_are_errors(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").touch()
    with pytest.raises(AclaError, match=r"cannot read image .*bad\.png"):
        evaluate(None, SuperResolution(2), [*paths, tmp_path / "bad.png"])
    save_image(np.zeros((12, 12, 3), dtype=np.uint8), tmp_path / "tiny.png")
    with pytest.raises(AclaError, match=r"image .*tiny\.png: ssim: 8x8 pixels"):
        evaluate(None, SuperResolution(2), [tmp_path / "tiny.png"])
    with pytest.raises(AclaError, match="no images"):
        evaluate(None, SuperResolution(2), [])


def test_table_and_means() -> None:
    evaluation = Evaluation((ImageScore("a_long_name", 30, 0.5), ImageScore("b", 33.333, 0.98765)))
    assert evaluation.psnr == pytest.approx(31.6665) and evaluation.ssim == pytest.approx(0.743825)
    assert evaluation.table().splitlines() == [
        "image        PSNR (dB)    SSIM",
        "a_long_name      30.00  0.5000",
        "b                33.33  0.9877",
        "mean             31.67  0.7438",
    ]
    assert Evaluation((ImageScore("a", math.inf, 1), ImageScore("b", 30, 0.9))).psnr == math.inf
