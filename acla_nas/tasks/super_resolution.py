"""Super-resolution: undo MATLAB's bicubic downscaling by 2, 3 or 4."""

from __future__ import annotations

import numpy as np

from acla_nas.data.imresize import imresize
from acla_nas.errors import AclaError
from acla_nas.metrics import luma
from acla_nas.tasks.task import Task

_SCALES = (2, 3, 4)


class SuperResolution(Task):
    """Bicubic super-resolution, scored on the luma without `scale` pixels at each border.

    This is how networks are scored since RCAN. The bicubic rows of published tables (on Set5 33.66, 30.39
    and 28.42 dB at scales 2, 3 and 4) go back to SRCNN's script, which scales the luma alone, rounded before
    and after but not in between, and so does :meth:`baseline_scores`. :meth:`baseline` itself starts from
    the 8-bit RGB input that a network gets; it would score 0.01 dB more.

    Args:
        scale: 2, 3 or 4: how many times larger, along each axis, the restored image is.

    Raises:
        AclaError: another scale.

    Example:
        >>> task = SuperResolution(scale=3)
        >>> hq = task.prepare(np.zeros((32, 32, 3), dtype=np.uint8))
        >>> hq.shape, task.degrade(hq, np.random.default_rng(0)).shape
        ((30, 30, 3), (10, 10, 3))
    """

    name = "super_resolution"
    baseline_name = "bicubic"
    y_channel = True

    def __init__(self, scale: int = 2) -> None:
        if scale not in _SCALES:
            raise AclaError(f"scale {scale!r} is not supported: use 2, 3 or 4")
        self.scale = int(scale)
        self.crop_border = self.scale

    def prepare(self, hq: np.ndarray) -> np.ndarray:
        """Return the image cropped at its bottom and right to a multiple of the scale.

        Args:
            hq: (H, W, 3) uint8.

        Returns:
            (H - H % scale, W - W % scale, 3) uint8, a view.
        """
        height, width = hq.shape[:2]
        return hq[: height - height % self.scale, : width - width % self.scale]

    def degrade(self, hq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the image downscaled by MATLAB's bicubic imresize.

        Args:
            hq: (H, W, 3) uint8, H and W multiples of the scale.
            rng: not used: nothing here is random.

        Returns:
            (H / scale, W / scale, 3) uint8.

        Raises:
            AclaError: the image is empty.
        """
        return imresize(hq, 1 / self.scale)

    def baseline_scores(self, hq: np.ndarray, lq: np.ndarray) -> tuple[float, float]:
        """Return PSNR in dB and SSIM of bicubic upscaling, as published tables have them."""
        y = np.round(luma(hq))
        restored = imresize(imresize(y, 1 / self.scale), self.scale)
        return self.psnr(restored, y), self.ssim(restored, y)

    def baseline(self, lq: np.ndarray) -> np.ndarray:
        """Return the image upscaled by MATLAB's bicubic imresize.

        Args:
            lq: (H, W, 3) uint8.

        Returns:
            (H * scale, W * scale, 3) uint8.
        """
        return imresize(lq, self.scale)
