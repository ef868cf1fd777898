"""What a restoration task is: how images are degraded for it, and how its results are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from acla_nas import metrics


class Task(ABC):
    """One restoration task: a degradation, the naive restoration to beat, and the protocol of its scores.

    A task of your own is a subclass with a `name`, a `baseline_name`, `degrade` and `baseline`, in a file of
    your own, under `acla_nas.tasks.register`. "hq" is the high-quality image, "lq" the degraded one that
    a network is given. All images are (H, W, C) in the units of 8-bit images, 0..255; networks see them
    divided by 255.

    Attributes:
        name: what the user calls the task by.
        baseline_name: what tables call the naive restoration by.
        scale: output pixels per input pixel along each axis; 1 where the size stays.
        in_channels: channels of lq.
        out_channels: channels of hq as `prepare` returns it, and of the restored image.
        per_patch: degrade every training patch anew, after its augmentation (random noise; a colour mosaic,
            whose phase a flip would change); else the whole image once, and patches are cut from the pair.
        crop_border: pixels left out of the scores at each border.
        y_channel: score only the luma of RGB.

    Example:
        >>> class Darkening(Task):
        ...     name, baseline_name = "darkening", "doubled"
        ...     def degrade(self, hq, rng):
        ...         return hq // 2
        ...     def baseline(self, lq):
        ...         return lq * 2
    """

    name: ClassVar[str]
    baseline_name: ClassVar[str]
    scale: int = 1
    in_channels: int = 3
    out_channels: int = 3
    per_patch: bool = False
    crop_border: int = 0
    y_channel: bool = False

    def prepare(self, hq: np.ndarray) -> np.ndarray:
        """Return what of an image the task works on: here all of it.

        Args:
            hq: (H, W, 3) uint8 RGB, as `acla_nas.data.load_image` returns it.

        Returns:
            (H', W', out_channels) uint8, with H' and W' multiples of `scale`.
        """
        return hq

    @abstractmethod
    def degrade(self, hq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the degraded image.

        Args:
            hq: (H, W, out_channels) uint8, prepared; it must not be changed in place.
            rng: the only source of randomness allowed, so that a seed reproduces the data.

        Returns:
            (H / scale, W / scale, in_channels), uint8, or float32 in units of 0..255 where rounding would be
            wrong.
        """

    @abstractmethod
    def baseline(self, lq: np.ndarray) -> np.ndarray:
        """Return the naive restoration that a network has to beat.

        Args:
            lq: as `degrade` returns it.

        Returns:
            (H, W, out_channels) uint8.
        """

    def baseline_scores(self, hq: np.ndarray, lq: np.ndarray) -> tuple[float, float]:
        """Return PSNR in dB and SSIM of the naive restoration, as the literature states them."""
        restored = self.baseline(lq)
        return self.psnr(restored, hq), self.ssim(restored, hq)

    def psnr(self, restored: np.ndarray, hq: np.ndarray) -> float:
        """Return the PSNR in dB under the task's protocol; for the rest see `acla_nas.metrics.psnr`."""
        return metrics.psnr(restored, hq, crop_border=self.crop_border, y_channel=self.y_channel)

    def ssim(self, restored: np.ndarray, hq: np.ndarray) -> float:
        """Return the SSIM under the task's protocol; for the rest see `acla_nas.metrics.ssim`."""
        return metrics.ssim(restored, hq, crop_border=self.crop_border, y_channel=self.y_channel)
