"""imresize equals MATLAB's, and is what its docstring says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acla_nas.data import imresize, load_image, to_uint8
from acla_nas.errors import AclaError

SCALES = st.sampled_from([1 / 4, 1 / 3, 1 / 2, 0.7, 1, 1.5, 2, 3, 4])
SIZES = st.integers(1, 20)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
def test_equals_matlab_bit_for_bit(shared_data: Path, name: str, scale: int) -> None:
    hr = load_image(shared_data / f"eval/Set5/{name}_GT.bmp")
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
    golden = load_image(shared_data / f"golden/Set5_LR_bicubic_matlab/x{scale}/{name}_LRBI_x{scale}.png")
    np.testing.assert_array_equal(imresize(hr, 1 / scale), golden)


def test_weights_by_hand() -> None:
    # At x2 the kernel is sampled at 1.25, 0.25, 0.75 and 1.75.
    weights = np.array([-9, 111, 29, -3]) / 128
    impulse = np.zeros((1, 9))
    impulse[0, 4] = 1
    expected = np.zeros(18)
    expected[[11, 9, 7, 5]] = weights
    expected[[6, 8, 10, 12]] = weights
    np.testing.assert_allclose(imresize(impulse, 2)[0], expected, atol=1e-15)


def test_border_is_repeated() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (9, 12))
    padded = np.pad(image, 8, mode="edge")
    np.testing.assert_allclose(imresize(padded, 2)[16:-16, 16:-16], imresize(image, 2), atol=1e-9)


def test_uint8_is_rounded_after_each_pass_and_float_never() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    exact = imresize(image.astype(np.float64), 0.5)
    rounded = imresize(image, 0.5)
    assert rounded.dtype == np.uint8 and exact.dtype == np.float64
    assert (exact != np.round(exact)).mean() > 0.9
    assert (rounded != to_uint8(exact)).any()
    assert np.abs(rounded - exact).max() < 1.5


def test_float_overshoots_and_uint8_is_clipped() -> None:
    step = np.repeat([[0, 0, 0, 255, 255, 255]], 6, axis=0)
    assert imresize(step.astype(np.float32), 2).min() < -5
    assert imresize(step.astype(np.float32), 2).max() > 260
    assert imresize(step.astype(np.uint8), 2)[0, [4, 7]].tolist() == [0, 255]


@settings(max_examples=30, deadline=None)
@given(height=SIZES, width=SIZES, scale=SCALES, level=st.integers(0, 255))
def test_constant_stays_constant_and_size_is_rounded_up(
    height: int, width: int, scale: float, level: int
) -> None:
    resized = imresize(np.full((height, width, 3), level, dtype=np.uint8), scale)
    assert resized.shape == (np.ceil(height * scale), np.ceil(width * scale), 3)
    assert (resized == level).all()


@settings(max_examples=30, deadline=None)
@given(height=SIZES, width=SIZES, scale=SCALES, seed=st.integers(0, 99))
def test_linear_in_the_image_and_commutes_with_flips(
    height: int, width: int, scale: float, seed: int
) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, height, width))
    combined = imresize(2 * a - 3 * b, scale)
    np.testing.assert_allclose(combined, 2 * imresize(a, scale) - 3 * imresize(b, scale), atol=1e-12)
    if (height * scale) % 1 == 0 == (width * scale) % 1:  # else the two grids differ
        np.testing.assert_allclose(imresize(a[::-1, ::-1], scale), imresize(a, scale)[::-1, ::-1], atol=1e-12)


def test_channels_do_not_mix() -> None:
    image = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(imresize(image, 0.5)[..., channel], imresize(image[..., channel], 0.5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_dtype_is_kept(dtype: type) -> None:
    assert imresize(np.ones((4, 4), dtype=dtype), 2).dtype == dtype


@pytest.mark.parametrize(
    ("image", "scale", "part"),
    [
        (np.zeros((0, 4), dtype=np.uint8), 2, r"shape \(0, 4\)"),
        (np.zeros(4, dtype=np.uint8), 2, r"shape \(4,\)"),
        (np.zeros((4, 4), dtype=np.int32), 2, "int32"),
        (np.zeros((4, 4), dtype=np.uint8), 0, "scale 0"),
        (np.zeros((4, 4), dtype=np.uint8), float("nan"), "scale nan"),
    ],
)
def test_refuses(image: np.ndarray, scale: float, part: str) -> None:
    with pytest.raises(AclaError, match=part):
        imresize(image, scale)


def test_to_uint8_refuses_nan() -> None:
    with pytest.raises(AclaError, match="NaN"):
        to_uint8(np.array([1.0, np.nan]))


def test_resizing_and_metrics_import_neither_torch_nor_nni() -> None:
    code = (
        "import sys; from acla_nas.data import imresize; import acla_nas.metrics, acla_nas.tasks; "
        "assert callable(imresize); "
        "print([m for m in ('torch', 'nni', 'pytorch_lightning', 'skimage') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
