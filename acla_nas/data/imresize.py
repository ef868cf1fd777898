"""MATLAB's bicubic imresize in NumPy, bit for bit: it made the published super-resolution inputs."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from acla_nas.errors import AclaError


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image as MATLAB's ``imresize(image, scale)`` does, bicubic and antialiased when it shrinks.

    Each axis is a weighted sum with Keys' cubic kernel (a = -0.5; R. Keys, "Cubic convolution interpolation
    for digital image processing", 1981), stretched by ``1 / scale`` when ``scale < 1``; beyond the border the
    edge pixel is repeated. The height first, then the width, in float64. A uint8 image is rounded (halves up)
    and clipped after *each* of the two passes. All this is what published pixels demand: another border,
    another order, or a single rounding each miss some of them.

    Args:
        image: (H, W) or (H, W, C), uint8 in 0..255 or floating point in any range.
        scale: output size over input size, > 0.

    Returns:
        (ceil(H * scale), ceil(W * scale)[, C]) of the image's dtype; a floating-point result is neither
        rounded nor clipped, so it can overshoot the input's range at edges.

    Raises:
        AclaError: the image is empty, or not 2-d or 3-d, or of another dtype; or the scale is not positive.

    Example:
        >>> imresize(np.array([[0, 0, 255, 255]], dtype=np.uint8), 2).tolist()[0]
        [0, 0, 0, 52, 203, 255, 255, 255]
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise AclaError(f"imresize: image of shape {image.shape}; give a non-empty (H, W) or (H, W, C) array")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise AclaError(f"imresize: image of dtype {image.dtype}; convert it to uint8 or a float type")
    if not (math.isfinite(scale) and scale > 0):
        raise AclaError(f"imresize: scale {scale}; give a positive number such as 2 or 1/3")
    resized = _resize_rows(image, scale)
    return np.ascontiguousarray(_resize_rows(resized.swapaxes(0, 1), scale).swapaxes(0, 1))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round to the nearest of 0..255, halves away from zero, as MATLAB's ``uint8()``; uint8 passes unchanged.

    Args:
        image: of any shape, in the units of 8-bit images (0..255, *not* 0..1).

    Returns:
        A uint8 array of the same shape.

    Raises:
        AclaError: the image holds NaN, which no grey level stands for.

    Example:
        >>> to_uint8(np.array([-3.0, 0.5, 1.5, 254.4, 300.0])).tolist()
        [0, 1, 2, 254, 255]
    """
    if image.dtype == np.uint8:
        return image
    if np.isnan(image).any():
        raise AclaError(f"image of shape {image.shape} holds NaN; the model that made it has diverged")
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)


def _resize_rows(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize axis 0 only; the sum runs tap by tap, in a fixed order, so every machine gives the same bits."""
    indices, weights = _taps(image.shape[0], scale)
    total = np.zeros((indices.shape[1], *image.shape[1:]))
    for index, weight in zip(indices, weights, strict=True):
        total += image[index] * weight.reshape(-1, *[1] * (image.ndim - 1))
    return to_uint8(total) if image.dtype == np.uint8 else total.astype(image.dtype)


@lru_cache(maxsize=64)
def _taps(in_length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the input indices and the weights of every output pixel, each (taps, out_length)."""
    stretch = min(scale, 1.0)  # < 1: the kernel widens to filter out what the smaller image cannot show
    width = 4 / stretch
    centre = (np.arange(math.ceil(in_length * scale)) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2)
    indices = first + np.arange(math.ceil(width) + 2)[:, None]
    weights = _cubic((centre - indices) * stretch)
    weights /= weights.sum(axis=0)
    used = weights.any(axis=1)
    return np.clip(indices[used].astype(np.intp), 0, in_length - 1), weights[used]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, zero from |x| = 2 on."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
