"""Denoising: undo white Gaussian noise on colour images."""

from __future__ import annotations

import math

import numpy as np

from acla_nas.data.imresize import to_uint8
from acla_nas.errors import AclaError
from acla_nas.tasks.task import Task


class Denoising(Task):
    """Removal of additive white Gaussian noise, scored on all of RGB.

    The noise has the same strength in each channel and is neither rounded nor clipped, as in DnCNN and
    FFDNet. RNAN's published inputs, which later tables build on, are 8-bit files, so rounded and clipped:
    ``quantized=True``. The paper does not say which it used; the difference grows with sigma, as clipping
    takes information away (and makes the noisy image itself score more).

    Training patches get new noise each time; an image in an evaluation always the same.

    Args:
        sigma: standard deviation of the noise in grey levels of 0..255, at most 255; the paper has 10, 30,
            50 and 70.
        quantized: round and clip the noisy image to 8 bits.

    Raises:
        AclaError: sigma is not above 0 and at most 255.

    Example:
        >>> task = Denoising(sigma=50)
        >>> grey = np.full((64, 64, 3), 128, dtype=np.uint8)
        >>> noisy = task.degrade(grey, np.random.default_rng(0))
        >>> noisy.dtype, round(float(noisy.std()))
        (dtype('float32'), 50)
    """

    name = "denoising"
    baseline_name = "noisy"
    per_patch = True

    def __init__(self, sigma: float = 30, quantized: bool = False) -> None:
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not math.isfinite(sigma):
            raise AclaError(f"sigma {sigma!r} is not a number: use one above 0, such as 10, 30, 50 or 70")
        if not 0 < sigma <= 255:
            raise AclaError(f"sigma {sigma!r} is not supported: use one above 0 and up to 255, such as 30")
        self.sigma = float(sigma)
        self.quantized = bool(quantized)

    def degrade(self, hq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the image with noise.

        Args:
            hq: (H, W, 3) uint8.
            rng: draws the noise.

        Returns:
            (H, W, 3) float32, beyond 0..255 in places; uint8 where quantized.
        """
        noise = rng.standard_normal(hq.shape, dtype=np.float32)
        noisy = hq + np.float32(self.sigma) * noise
        return to_uint8(noisy) if self.quantized else noisy

    def baseline(self, lq: np.ndarray) -> np.ndarray:
        """Return the noisy image itself, rounded and clipped.

        Args:
            lq: (H, W, 3), as `degrade` returns it.

        Returns:
            (H, W, 3) uint8.
        """
        return to_uint8(lq)
