"""PSNR and SSIM reproduce published numbers and refuse what cannot be compared."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acla_nas.data import list_images, load_image
from acla_nas.errors import AclaError
from acla_nas.evaluation import evaluate
from acla_nas.metrics import psnr, ssim
from acla_nas.tasks import SuperResolution


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("scale", "published"), [(2, (33.66, 0.9299)), (3, (30.39, 0.8682)), (4, (28.42, 0.8104))]
)
def test_published_bicubic_scores_of_set5(
    shared_data: Path, scale: int, published: tuple[float, float]
) -> None:
    scores = evaluate(None, SuperResolution(scale), list_images(shared_data / "eval/Set5", "test"))
    assert len(scores.rows) == 5
    assert (round(scores.psnr, 2), round(scores.ssim, 4)) == published


def test_published_jpeg_scores_of_classic5(shared_data: Path) -> None:
    scores = []
    for path in list_images(shared_data / "eval/Classic5", "test"):
        compressed = load_image(shared_data / f"golden/Classic5_jpeg_q10/{path.stem}_LQ_Q10.png")
        scores.append(psnr(compressed[..., 0], load_image(path)[..., 0]))
    assert len(scores) == 5
    assert round(np.mean(scores), 2) == 27.82


def test_psnr_by_hand() -> None:
    a = np.full((10, 10), 100, dtype=np.uint8)
    assert psnr(a, a + 5) == pytest.approx(10 * math.log10(255**2 / 25))


def test_y_channel_by_hand() -> None:
    a = np.zeros((4, 4, 3), dtype=np.uint8)
    b = a.copy()
    b[..., 1] = 10
    assert psnr(a, b, y_channel=True) == pytest.approx(20 * math.log10(255 / (128.553 * 10 / 255)))
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / (100 / 3)))


def test_grey_is_luma_already() -> None:
    a, b = _random(0, 16, 16), _random(1, 16, 16)
    assert psnr(a, b, y_channel=True) == psnr(a, b) == psnr(a[..., None], b[..., None], y_channel=True)
    assert ssim(a, b, y_channel=True) == ssim(a, b) == ssim(a[..., None], b[..., None])


def test_crop_border_leaves_the_border_out() -> None:
    a = _random(0, 20, 24, 3)
    b = a.copy()
    b[:3], b[-3:], b[:, :3], b[:, -3:] = 0, 0, 255, 255
    assert psnr(a, b, crop_border=3) == math.inf
    assert ssim(a, b, crop_border=3) == 1
    assert psnr(a, b, crop_border=2) < math.inf
    assert ssim(a, b, crop_border=2) < 1


def test_float_is_rounded_and_clipped() -> None:
    a = np.array([[0.0, 255.0], [10.0, 20.0]])
    b = np.array([[-40.0, 300.0], [10.4, 19.6]])
    assert psnr(a, b) == math.inf
    assert psnr(a, b + np.array([[0, 0], [0.2, 0]])) < math.inf


def test_ssim_by_hand_of_two_constants() -> None:
    # No variance: what remains is the luminance term.
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert ssim(np.full((16, 16), 100), np.full((16, 16), 150)) == pytest.approx(expected)


def test_ssim_counts_only_windows_within_the_image() -> None:
    # 11x11 pixels hold one window.
    a, b = _random(0, 11, 11).astype(float), _random(1, 11, 11).astype(float)
    g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * a * a).sum() - ma**2, (w * b * b).sum() - mb**2, (w * a * b).sum() - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), crop=st.integers(0, 3), y=st.booleans())
def test_symmetric_and_perfect_on_itself(seed: int, crop: int, y: bool) -> None:
    a, b = _random(seed, 18, 20, 3), _random(seed + 1, 18, 20, 3)
    for metric, best in ((psnr, math.inf), (ssim, 1)):
        assert metric(a, b, crop_border=crop, y_channel=y) == metric(b, a, crop_border=crop, y_channel=y)
        assert metric(a, a, crop_border=crop, y_channel=y) == best
        assert metric(a, b, crop_border=crop, y_channel=y) < best


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_refuses(metric) -> None:
    a = np.zeros((12, 12, 3), dtype=np.uint8)
    with pytest.raises(AclaError, match=r"\(12, 12, 3\) and \(12, 13, 3\)"):
        metric(a, np.zeros((12, 13, 3), dtype=np.uint8))
    with pytest.raises(AclaError, match=r"shape \(12, 12, 4\)"):
        metric(np.zeros((12, 12, 4)), np.zeros((12, 12, 4)))
    with pytest.raises(AclaError, match="crop_border=6"):
        metric(a, a, crop_border=6)
    with pytest.raises(AclaError, match="crop_border=-1"):
        metric(a, a, crop_border=-1)
    with pytest.raises(AclaError, match="NaN"):
        metric(np.full((12, 12), np.nan), np.zeros((12, 12)))


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(AclaError, match="10x12 pixels are left after cropping 1"):
        ssim(np.zeros((12, 14)), np.zeros((12, 14)), crop_border=1)
