"""Whole images with their degraded versions, for validation and evaluation; images as tensors and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from acla_nas.data.images import load_image
from acla_nas.data.imresize import to_uint8
from acla_nas.errors import AclaError
from acla_nas.tasks.task import Task


def image_to_tensor(image: np.ndarray) -> torch.Tensor:
    """Return an image as a network sees it.

    Args:
        image: (H, W, C), uint8 or floating point in units of 0..255.

    Returns:
        (C, H, W) float32, divided by 255; memory of its own.

    Example:
        >>> image_to_tensor(np.full((2, 4, 3), 255, dtype=np.uint8)).shape
        torch.Size([3, 2, 4])
    """
    channels_first = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(channels_first / 255)


def tensor_to_image(tensor: torch.Tensor) -> np.ndarray:
    """Return a network's output as an image: times 255, clipped, rounded.

    Args:
        tensor: (C, H, W), floating point, 0..1, on any device.

    Returns:
        (H, W, C) uint8; `image_to_tensor` of a uint8 image comes back exactly.

    Raises:
        AclaError: the tensor holds NaN.

    Example:
        >>> tensor_to_image(torch.tensor([[[-0.1, 0.5, 1.1]]])).ravel().tolist()
        [0, 128, 255]
    """
    return to_uint8(np.ascontiguousarray(tensor.detach().float().cpu().numpy().transpose(1, 2, 0)) * 255)


class PairDataset(Dataset[tuple[torch.Tensor, torch.Tensor, str]]):
    """Whole images: item i is (lq, hq, name), read and degraded anew each time, and the same each time.

    Images differ in size, so use a DataLoader with ``batch_size=1``. Item i's noise, where the task has any,
    depends on (seed, i) alone.

    Args:
        task: what prepares and degrades the images.
        paths: image files.
        seed: >= 0, of the degradation's randomness.

    Raises:
        AclaError: there are no paths, or the seed is below 0. Later, on access: a file cannot be read, or the
            image is too small for the task; none is skipped, as a score over fewer images than were asked for
            would not be comparable.

    Example:
        >>> from acla_nas.data import list_images
        >>> from acla_nas.tasks import SuperResolution
        >>> lq, hq, name = PairDataset(SuperResolution(2), list_images("embedded", "test"))[0]
        >>> lq.shape, hq.shape, name
        (torch.Size([3, 150, 225]), torch.Size([3, 300, 450]), 'chelsea')
    """

    def __init__(self, task: Task, paths: Sequence[str | Path], *, seed: int = 0) -> None:
        self.task = task
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise AclaError("no images: the list of paths is empty; give at least one")
        if seed < 0:
            raise AclaError(f"seed={seed}; use a seed of 0 or more")
        self.seed = seed
        stems = Counter(path.stem for path in self.paths)
        self.names = [path.stem if stems[path.stem] == 1 else path.name for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Return item `index`, 0 <= index < len(self).

        Returns:
            lq: (in_channels, H / scale, W / scale) float32, in 0..1 but for noise.
            hq: (out_channels, H, W) float32, in 0..1.
            name: the file's name, without its suffix where that is enough to tell it apart.

        Raises:
            AclaError: as `images`.
        """
        lq, hq = self.images(index)
        return image_to_tensor(lq), image_to_tensor(hq), self.names[index]

    def images(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (lq, hq) as the task makes them.

        Args:
            index: 0 <= index < len(self).

        Returns:
            lq: (H / scale, W / scale, in_channels), uint8 or float32 in units of 0..255.
            hq: (H, W, out_channels) uint8.

        Raises:
            AclaError: the file cannot be read, or the image is too small for the task; it is named.
        """
        path = self.paths[index]
        image = load_image(path)
        try:
            hq = self.task.prepare(image)
            return self.task.degrade(hq, np.random.default_rng([self.seed, index])), hq
        except AclaError as error:
            height, width = image.shape[:2]
            raise AclaError(f"image {path} ({width}x{height}): {error}") from error
