"""PSNR and SSIM under the protocols that published restoration results use; NumPy only, no PyTorch."""

from __future__ import annotations

import math

import numpy as np

from acla_nas.data.imresize import to_uint8
from acla_nas.errors import AclaError

_SSIM_WINDOW = 11  # pixels: the Gaussian of sigma 1.5 is cut off there


def psnr(a: np.ndarray, b: np.ndarray, *, crop_border: int = 0, y_channel: bool = False) -> float:
    """Return the peak signal-to-noise ratio of two images, ``10 log10(255^2 / mean((a - b)^2))``.

    The mean runs over pixels and channels together. Super-resolution is reported with ``y_channel=True`` and
    ``crop_border=scale``, colour denoising with neither.

    Args:
        a: (H, W), (H, W, 1) or (H, W, 3) RGB, uint8; floating point *in 0..255* is rounded and clipped first.
        b: of the same shape; the two are interchangeable.
        crop_border: pixels left out at each of the four borders.
        y_channel: compare only the luma of RGB images (see `luma`); a one-channel image is luma already.

    Returns:
        Decibels; infinity for identical images.

    Raises:
        AclaError: the shapes differ or are not those of images, nothing is left after cropping, or an image
            holds NaN.

    Example:
        >>> round(psnr(np.zeros((8, 8)), np.full((8, 8), 5)), 2)
        34.15
    """
    a, b = _comparable(a, b, crop_border, y_channel)
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: np.ndarray, b: np.ndarray, *, crop_border: int = 0, y_channel: bool = False) -> float:
    """Return the mean structural similarity of two images, in the form of the original MATLAB code.

    Gaussian window 11x11 of sigma 1.5, K1 = 0.01, K2 = 0.03, peak 255, only windows that lie within the
    image; the mean over channels for RGB (Z. Wang et al., "Image quality assessment: from error visibility to
    structural similarity", 2004). The code is scikit-image's, with the options that reproduce published
    numbers.

    Args:
        a: (H, W), (H, W, 1) or (H, W, 3) RGB, uint8; floating point *in 0..255* is rounded and clipped first.
        b: of the same shape; the two are interchangeable.
        crop_border: pixels left out at each of the four borders.
        y_channel: compare only the luma of RGB images (see `luma`); a one-channel image is luma already.

    Returns:
        Between -1 and 1; 1 for identical images.

    Raises:
        AclaError: the shapes differ or are not those of images, less than 11x11 pixels are left after
            cropping, or an image holds NaN.

    Example:
        >>> image = np.arange(256, dtype=np.uint8).reshape(16, 16)
        >>> ssim(image, image)
        1.0
    """
    from skimage.metrics import structural_similarity  # here: it takes a second to import SciPy

    a, b = _comparable(a, b, crop_border, y_channel)
    if min(a.shape[:2]) < _SSIM_WINDOW:
        raise AclaError(
            f"ssim: {a.shape[0]}x{a.shape[1]} pixels are left after cropping {crop_border} at each border; "
            f"it needs at least {_SSIM_WINDOW}x{_SSIM_WINDOW}: use a larger image"
        )
    return float(
        structural_similarity(
            a,
            b,
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def luma(image: np.ndarray) -> np.ndarray:
    """Return the Y of MATLAB's ``rgb2ycbcr``: ``16 + (65.481 R + 128.553 G + 24.966 B) / 255``, not rounded.

    MATLAB rounds it for uint8 images only. The published evaluation code of RCAN, and of those that followed,
    converts to double first, so networks' published scores are on the unrounded Y (rounding costs some
    0.03 dB at 34 dB, and more above).

    Args:
        image: (H, W, 3) RGB, 0..255.

    Returns:
        (H, W, 1) float64, 16 (black) to 235 (white).

    Example:
        >>> luma(np.array([[[0, 0, 0], [255, 255, 255]]])).ravel().tolist()
        [16.0, 235.0]
    """
    return 16 + (image.astype(np.float64) @ np.array([[65.481], [128.553], [24.966]])) / 255


def _comparable(
    a: np.ndarray, b: np.ndarray, crop_border: int, y_channel: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Check two images and return what the protocol compares of them, (H, W, C) float64."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise AclaError(f"cannot compare images of shapes {a.shape} and {b.shape}; they must be equal")
    if a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] not in (1, 3)):
        raise AclaError(
            f"cannot compare arrays of shape {a.shape}; give (H, W), (H, W, 1) or (H, W, 3) images"
        )
    height, width = a.shape[:2]
    if not 0 <= 2 * crop_border < min(height, width):
        raise AclaError(
            f"crop_border={crop_border} leaves nothing of images of {height}x{width} pixels: use larger ones"
        )
    inner = slice(crop_border, height - crop_border), slice(crop_border, width - crop_border)
    return _channels(a[inner], y_channel), _channels(b[inner], y_channel)


def _channels(image: np.ndarray, y_channel: bool) -> np.ndarray:
    image = to_uint8(image)
    image = image.reshape(*image.shape[:2], -1)
    return luma(image) if y_channel and image.shape[2] == 3 else image.astype(np.float64)
