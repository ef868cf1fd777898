"""Demosaicing: restore the two colours that a camera's colour filter kept from each pixel."""

from __future__ import annotations

import numpy as np

from acla_nas.errors import AclaError
from acla_nas.tasks.task import Task

_PATTERNS = ("rggb", "grbg", "gbrg", "bggr")


class Demosaicing(Task):
    """Demosaicing of a Bayer pattern, given as RGB with zeros where a colour was not sampled.

    Scored on all of RGB, without a crop. With that, and the mosaic itself taken for the restored image, this
    is Table 10's Mosaiced row: McMaster18 9.168 dB and SSIM 0.1674 (the paper: 9.17, 0.1674). The mean over
    channels of each one's PSNR would be 9.83 dB, the luma 12.66 dB.

    The pattern hardly matters for that, but the paper's numbers are of GRBG, as RNAN's, whose published
    example has that pattern: on Kodak24's full frames GRBG scores 8.558 dB and 0.0682, as in the paper, RGGB
    8.555 dB and 0.0667.

    Args:
        pattern: the colours of the top left 2x2 pixels, row by row: rggb, grbg, gbrg or bggr.

    Raises:
        AclaError: another pattern.

    Example:
        >>> task = Demosaicing()
        >>> white = np.full((2, 2, 3), 255, dtype=np.uint8)
        >>> task.degrade(white, np.random.default_rng(0)).tolist()
        [[[255, 0, 0], [0, 255, 0]], [[0, 255, 0], [0, 0, 255]]]
    """

    name = "demosaicing"
    baseline_name = "mosaiced"
    per_patch = True  # a flip would turn one pattern into another

    def __init__(self, pattern: str = "rggb") -> None:
        if pattern not in _PATTERNS:
            raise AclaError(f"pattern {pattern!r} is not supported: use {', '.join(_PATTERNS)}")
        self.pattern = pattern

    def degrade(self, hq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the image with two of each pixel's three values set to zero.

        Args:
            hq: (H, W, 3) uint8; its top left pixel is the pattern's.
            rng: not used: nothing here is random.

        Returns:
            (H, W, 3) uint8.
        """
        mosaic = np.zeros_like(hq)
        for i, colour in enumerate(self.pattern):
            sampled = slice(i // 2, None, 2), slice(i % 2, None, 2), "rgb".index(colour)
            mosaic[sampled] = hq[sampled]
        return mosaic

    def baseline(self, lq: np.ndarray) -> np.ndarray:
        """Return the mosaic itself: published tables begin with it, low as it is.

        Args:
            lq: (H, W, 3) uint8.

        Returns:
            The same.
        """
        return lq
