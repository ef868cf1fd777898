"""Super-resolution's degradation, protocol and errors; the registry of tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acla_nas import metrics
from acla_nas.data import load_image
from acla_nas.errors import AclaError
from acla_nas.tasks import SuperResolution, Task, get, names, register

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shapes(scale: int) -> None:
    task = SuperResolution(scale)
    image = RNG.integers(0, 256, (49, 62, 3), dtype=np.uint8)
    hq = task.prepare(image)
    height, width = 49 // scale, 62 // scale
    np.testing.assert_array_equal(hq, image[: height * scale, : width * scale])
    lq = task.degrade(hq, RNG)
    assert lq.shape == (height, width, 3) and lq.dtype == np.uint8
    restored = task.baseline(lq)
    assert restored.shape == hq.shape and restored.dtype == np.uint8


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_degrade_gives_the_published_input(shared_data: Path, scale: int) -> None:
    task = SuperResolution(scale)
    hq = task.prepare(load_image(shared_data / "eval/Set5/woman_GT.bmp"))
    golden = load_image(shared_data / f"golden/Set5_LR_bicubic_matlab/x{scale}/woman_LRBI_x{scale}.png")
    np.testing.assert_array_equal(task.degrade(hq, RNG), golden)


def test_protocol_is_luma_without_scale_pixels_of_border() -> None:
    a, b = RNG.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    task = SuperResolution(3)
    assert task.psnr(a, b) == metrics.psnr(a, b, crop_border=3, y_channel=True) != metrics.psnr(a, b)
    assert task.ssim(a, b) == metrics.ssim(a, b, crop_border=3, y_channel=True) != metrics.ssim(a, b)


@pytest.mark.parametrize("scale", [1, 5, 2.5, "2", None])
def test_other_scales_are_refused(scale: object) -> None:
    with pytest.raises(AclaError, match=r"scale .*: use 2, 3 or 4"):
        get("super_resolution", scale=scale)


def test_an_image_smaller_than_the_scale_is_refused() -> None:
    task = SuperResolution(4)
    with pytest.raises(AclaError, match="shape"):
        task.degrade(task.prepare(np.zeros((3, 8, 3), dtype=np.uint8)), RNG)


def test_registry_finds_by_name_and_passes_options() -> None:
    task = get("super_resolution", scale=4)
    assert isinstance(task, SuperResolution) and task.scale == 4
    assert get("super_resolution").scale == 2
    assert "super_resolution" in names()


def test_registry_refuses_unknown_names_and_options() -> None:
    with pytest.raises(AclaError, match="unknown task 'super_resolutio'; did you mean 'super_resolution'"):
        get("super_resolutio")
    with pytest.raises(AclaError, match="unexpected keyword argument 'sigma'; it takes: scale"):
        get("super_resolution", sigma=3)


def test_a_task_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acla_nas.tasks.REGISTRY.entries", {})

    def define() -> type[Task]:
        @register
        class Negative(Task):
            name, baseline_name = "negative", "inverted"

            def degrade(self, hq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
                return 255 - hq

            def baseline(self, lq: np.ndarray) -> np.ndarray:
                return 255 - lq

        return Negative

    negative = define()
    again = define()  # as when a file is loaded twice
    assert names() == ["negative"]
    task = get("negative")
    assert isinstance(task, again) and not isinstance(task, negative)
    image = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert task.psnr(task.baseline(task.degrade(task.prepare(image), RNG)), image) == np.inf

    class Other(SuperResolution):
        name = "negative"

    with pytest.raises(AclaError, match="'negative' is taken by"):
        register(Other)
    with pytest.raises(AclaError, match="subclass of Task"):
        register(int)  # type: ignore[type-var]
