"""Demosaicing: the mosaic keeps the right samples and scores as published; patches keep its phase."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acla_nas import metrics
from acla_nas.data import PatchDataset, list_images, tensor_to_image
from acla_nas.errors import AclaError
from acla_nas.evaluation import evaluate
from acla_nas.tasks import Demosaicing, get

RNG = np.random.default_rng(0)
PATTERNS = ("rggb", "grbg", "gbrg", "bggr")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_mosaic_keeps_one_value_of_each_pixel_as_it_is(pattern: str) -> None:
    hq = RNG.integers(1, 256, (12, 18, 3), dtype=np.uint8)  # never 0
    before = hq.copy()
    mosaic = Demosaicing(pattern).degrade(hq, RNG)
    assert mosaic.dtype == np.uint8
    kept = mosaic != 0
    np.testing.assert_array_equal(kept.sum(axis=2), 1)
    assert kept.mean(axis=(0, 1)).tolist() == [1 / 4, 1 / 2, 1 / 4]
    np.testing.assert_array_equal(mosaic[kept], hq[kept])
    np.testing.assert_array_equal(hq, before)
    for (top, left), colour in zip(np.ndindex(2, 2), pattern):
        assert kept[top::2, left::2, "rgb".index(colour)].all()


def test_odd_sizes() -> None:
    mosaic = Demosaicing().degrade(np.full((5, 7, 3), 9, dtype=np.uint8), RNG)
    assert (mosaic != 0).sum(axis=(0, 1)).tolist() == [3 * 4, 3 * 3 + 2 * 4, 2 * 3]


def test_augmented_patches_all_have_the_pattern() -> None:
    dataset = PatchDataset(Demosaicing(), list_images("embedded", "validation"), patch_size=7, length=16)
    for lq, hq in (dataset[i] for i in range(16)):
        mosaic, original = tensor_to_image(lq), tensor_to_image(hq)
        np.testing.assert_array_equal(mosaic, Demosaicing().degrade(original, RNG))


@pytest.mark.parametrize("pattern", ["rggb", "grbg"])
def test_mosaiced_mcmaster18_scores_as_published(shared_data: Path, pattern: str) -> None:
    scores = evaluate(None, Demosaicing(pattern), list_images(shared_data / "eval" / "McMaster18", "test"))
    assert scores.psnr == pytest.approx(9.17, abs=0.005)
    assert scores.ssim == pytest.approx(0.1674, abs=0.00005)


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "ssim"), [("rggb", 0.0667), ("grbg", 0.0682)])
def test_mosaiced_kodak24_tells_the_published_pattern(shared_data: Path, pattern: str, ssim: float) -> None:
    """The paper has 8.56 dB and 0.0682."""
    scores = evaluate(None, Demosaicing(pattern), list_images(shared_data / "eval" / "Kodak24", "test"))
    assert scores.psnr == pytest.approx(8.56, abs=0.005)
    assert scores.ssim == pytest.approx(ssim, abs=0.00005)


def test_protocol_is_rgb_without_a_crop() -> None:
    a, b = RNG.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    assert Demosaicing().psnr(a, b) == metrics.psnr(a, b)
    assert Demosaicing().ssim(a, b) == metrics.ssim(a, b)


@pytest.mark.parametrize("pattern", ["RGGB", "rgbg", "", None, 1])
def test_other_patterns_are_refused(pattern: object) -> None:
    with pytest.raises(AclaError, match=r"pattern .* is not supported: use rggb, grbg, gbrg, bggr"):
        get("demosaicing", pattern=pattern)
