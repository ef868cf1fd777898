"""JPEG artefact reduction: undo JPEG compression of the luma."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from acla_nas.data.imresize import to_uint8
from acla_nas.errors import AclaError
from acla_nas.metrics import luma
from acla_nas.tasks.task import Task


class JpegArtifacts(Task):
    """Removal of JPEG's artefacts from the luma: one channel in, one out, and scored.

    The luma is compressed as a greyscale JPEG by Pillow, whose libjpeg gives what MATLAB's ``imwrite`` gives:
    pixel for pixel the inputs that RNAN published (Classic5 at quality 10), and Table 3's JPEG row
    (Classic5 27.82, 30.12, 31.48 and 32.43 dB at 10, 20, 30 and 40). Whole images are compressed, then cut
    into patches, so JPEG's 8x8 blocks lie at any phase, as in RNAN's training.

    Args:
        quality: 1 to 100, on the scale of libjpeg and MATLAB; the paper has 10, 20, 30 and 40.

    Raises:
        AclaError: another quality.

    Example:
        >>> task = JpegArtifacts(quality=10)
        >>> ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
        >>> hq = task.prepare(ramp)
        >>> lq = task.degrade(hq, np.random.default_rng(0))
        >>> lq.shape, round(task.psnr(lq, hq))
        ((16, 16, 1), 35)
    """

    name = "jpeg"
    baseline_name = "JPEG"
    in_channels = 1
    out_channels = 1

    def __init__(self, quality: int = 10) -> None:
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise AclaError(f"quality {quality!r} is not supported: use a whole number from 1 to 100")
        self.quality = quality

    def prepare(self, hq: np.ndarray) -> np.ndarray:
        """Return the luma of MATLAB's rgb2ycbcr, rounded; of a grey image, its grey.

        Args:
            hq: (H, W, 3) uint8; an image is grey where its three channels are the same throughout.

        Returns:
            (H, W, 1) uint8.
        """
        if (hq == hq[..., :1]).all():
            return hq[..., :1]
        return to_uint8(luma(hq))

    def degrade(self, hq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the image compressed and decompressed.

        Args:
            hq: (H, W, 1) uint8.
            rng: not used: nothing here is random.

        Returns:
            (H, W, 1) uint8.
        """
        file = io.BytesIO()
        Image.fromarray(hq[..., 0]).save(file, "JPEG", quality=self.quality)
        with Image.open(file) as image:
            return np.array(image)[..., None]

    def baseline(self, lq: np.ndarray) -> np.ndarray:
        """Return the decompressed image itself.

        Args:
            lq: (H, W, 1) uint8.

        Returns:
            The same.
        """
        return lq
