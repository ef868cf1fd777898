"""JPEG artefact reduction: the published inputs and scores, and the luma they are on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acla_nas import metrics
from acla_nas.data import list_images, load_image
from acla_nas.errors import AclaError
from acla_nas.evaluation import evaluate
from acla_nas.metrics import luma
from acla_nas.tasks import JpegArtifacts, get

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["baboon", "barbara", "boats", "lena", "peppers"])
def test_degrade_gives_the_published_input(shared_data: Path, name: str) -> None:
    task = JpegArtifacts(10)
    hq = task.prepare(load_image(shared_data / "eval" / "Classic5" / f"{name}.bmp"))
    golden = load_image(shared_data / "golden" / "Classic5_jpeg_q10" / f"{name}_LQ_Q10.png")
    np.testing.assert_array_equal(task.degrade(hq, RNG), golden[..., :1])


@pytest.mark.parametrize(("quality", "psnr"), [(10, 27.82), (20, 30.12), (30, 31.48), (40, 32.43)])
def test_classic5_scores_as_published(shared_data: Path, quality: int, psnr: float) -> None:
    paths = list_images(shared_data / "eval" / "Classic5", "test")
    assert evaluate(None, JpegArtifacts(quality), paths).psnr == pytest.approx(psnr, abs=0.01)


def test_a_grey_image_is_its_own_luma_and_a_colour_image_has_matlabs_rounded() -> None:
    grey = RNG.integers(0, 256, (9, 7, 1), dtype=np.uint8)
    np.testing.assert_array_equal(JpegArtifacts().prepare(grey.repeat(3, axis=2)), grey)
    colour = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    y = JpegArtifacts().prepare(colour)
    assert y.dtype == np.uint8 and y.shape == (9, 7, 1)
    assert np.abs(y - luma(colour)).max() <= 0.5
    black_and_white = np.zeros((1, 2, 3), dtype=np.uint8)
    black_and_white[0, 1] = 255, 255, 254  # one grey level short of grey
    assert JpegArtifacts().prepare(black_and_white).ravel().tolist() == [16, 235]


def test_lower_quality_is_further_away_and_nothing_is_random() -> None:
    hq = JpegArtifacts().prepare(load_image(list_images("embedded", "test")[0]))
    before = hq.copy()
    scores = []
    for quality in (1, 10, 40, 95, 100):
        task = JpegArtifacts(quality)
        lq = task.degrade(hq, np.random.default_rng(0))
        assert lq.shape == hq.shape and lq.dtype == np.uint8
        np.testing.assert_array_equal(lq, task.degrade(hq, np.random.default_rng(1)))
        np.testing.assert_array_equal(task.baseline(lq), lq)
        scores.append(task.psnr(lq, hq))
    assert scores == sorted(scores) and scores[0] < 26 and scores[-1] > 50
    np.testing.assert_array_equal(hq, before)


def test_protocol_is_the_luma_without_a_crop() -> None:
    a, b = RNG.integers(0, 256, (2, 24, 24, 1), dtype=np.uint8)
    assert JpegArtifacts().psnr(a, b) == metrics.psnr(a, b)
    assert JpegArtifacts().ssim(a, b) == metrics.ssim(a, b)


@pytest.mark.parametrize("quality", [0, 101, 10.5, "10", None, True])
def test_other_qualities_are_refused(quality: object) -> None:
    with pytest.raises(AclaError, match=r"quality .* is not supported: use a whole number from 1 to 100"):
        get("jpeg", quality=quality)
