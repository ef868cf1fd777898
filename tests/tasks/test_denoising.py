"""Denoising: the noise has the strength asked for, the seed decides it, and scores are on all of RGB."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from acla_nas import metrics
from acla_nas.data import PairDataset, list_images, load_image, save_image
from acla_nas.errors import AclaError
from acla_nas.evaluation import evaluate
from acla_nas.tasks import Denoising, get

GREY = np.full((96, 96, 3), 128, dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("sigma", [0.5, 10, 30, 50, 70, 255])
def test_noise_is_white_of_the_strength_asked_for_and_neither_rounded_nor_clipped(sigma: float) -> None:
    noisy = Denoising(sigma).degrade(GREY, rng())
    assert noisy.dtype == np.float32 and noisy.shape == GREY.shape
    noise = noisy.astype(np.float64) - GREY
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean()) < 3 * sigma / math.sqrt(noise.size)
    neighbours = (noise[1:] * noise[:-1]).mean() / sigma**2
    channels = (noise[..., 0] * noise[..., 1]).mean() / sigma**2
    assert abs(neighbours) < 0.03 and abs(channels) < 0.03
    assert len(np.unique(noise)) > 10_000
    if sigma >= 50:
        assert noisy.min() < 0 and noisy.max() > 255


def test_quantized_noise_is_the_same_rounded_and_clipped() -> None:
    noisy = Denoising(70).degrade(GREY, rng())
    eight_bit = Denoising(70, quantized=True).degrade(GREY, rng())
    assert eight_bit.dtype == np.uint8
    np.testing.assert_array_equal(eight_bit, np.floor(np.clip(noisy, 0, 255) + 0.5))
    np.testing.assert_array_equal(Denoising().baseline(noisy), eight_bit)


def test_seed_decides_the_noise_and_the_original_stays() -> None:
    hq = GREY.copy()
    first = Denoising().degrade(hq, rng(3))
    np.testing.assert_array_equal(first, Denoising().degrade(hq, rng(3)))
    assert (first != Denoising().degrade(hq, rng(4))).mean() > 0.99
    np.testing.assert_array_equal(hq, GREY)


def test_each_image_of_an_evaluation_has_its_own_noise_and_always_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_image(GREY, tmp_path / f"{name}.png")
    paths = list_images(tmp_path, "test")
    (a, _), (b, _) = (PairDataset(Denoising(), paths).images(i) for i in range(2))
    assert (a != b).mean() > 0.99
    np.testing.assert_array_equal(b, PairDataset(Denoising(), paths).images(1)[0])
    assert evaluate(None, Denoising(), paths).rows == evaluate(None, Denoising(), paths).rows


def test_protocol_is_rgb_without_a_crop() -> None:
    a, b = rng().integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    assert Denoising().psnr(a, b) == metrics.psnr(a, b)
    assert Denoising().ssim(a, b) == metrics.ssim(a, b)


@pytest.mark.parametrize("sigma", [10, 30, 50, 70])
def test_noisy_images_score_as_their_sigma_demands(shared_data: Path, sigma: int) -> None:
    paths = list_images(shared_data / "eval" / "Kodak24", "test")[:3]
    clipped = [np.clip(Denoising(sigma).degrade(load_image(p), rng(9)), 0, 255) for p in paths]
    expected = np.mean([metrics.psnr(image, load_image(p)) for image, p in zip(clipped, paths)])
    score = evaluate(None, Denoising(sigma), paths).psnr
    assert score == pytest.approx(expected, abs=0.02)
    unclipped = 20 * math.log10(255 / sigma)
    assert unclipped < score < unclipped + 2  # clipping takes error away


@pytest.mark.parametrize("sigma", [0, -1, 255.5, math.inf, math.nan, "30", None, True])
def test_other_sigmas_are_refused(sigma: object) -> None:
    with pytest.raises(AclaError, match=r"sigma .*: use one above 0"):
        get("denoising", sigma=sigma)
