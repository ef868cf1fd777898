"""Training patches: random, and yet the same on every machine, in every run, with any number of workers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.data import Dataset

from acla_nas.data.image_store import ImageStore, Stored
from acla_nas.data.images import load_image
from acla_nas.data.pairs import image_to_tensor
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.tasks.task import Task

_Pair = tuple[Stored | None, Stored]  # lq, or None where every patch is degraded anew; and hq
_USABLE = 0.5  # of the memory that is free


class PatchDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random patches of images with their degraded versions; an epoch is `length` of them.

    Patch i of epoch e depends on (seed, e, i) and the images alone: not on the number of workers, nor on
    what was asked for before. So a run that is resumed at epoch e goes on as if it had never stopped::

        for epoch in range(first_epoch, epochs):
            dataset.set_epoch(epoch)
            for lq, hq in DataLoader(dataset, batch_size=16, num_workers=4):
                ...

    All images are read and degraded at once, here, H * W * 3 * (1 + 1 / scale^2) bytes each. They are kept in
    memory, which forked workers share, as far as half of what is free goes; those beyond are kept in files
    for as long as the dataset lives, which a warning says. Leave the loader's shuffle off: the patches are
    random already.

    Args:
        task: what prepares and degrades the images.
        paths: image files. One that is unreadable, or smaller than a patch, is left out with a warning.
        patch_size: side of the square patch in *lq* pixels; hq's is `scale` times that.
        length: patches per epoch.
        augment: turn and flip each patch in one of the 8 ways, at random.
        seed: >= 0.

    Attributes:
        paths: of the images that are used.

    Raises:
        AclaError: no image can be read, none is as large as a patch, or a number is out of range.

    Example:
        >>> from acla_nas.data import list_images
        >>> from acla_nas.tasks import SuperResolution
        >>> paths = list_images("embedded", "train")
        >>> lq, hq = PatchDataset(SuperResolution(2), paths, patch_size=24, length=10)[0]
        >>> lq.shape, hq.shape
        (torch.Size([3, 24, 24]), torch.Size([3, 48, 48]))
    """

    def __init__(
        self,
        task: Task,
        paths: Sequence[str | Path],
        *,
        patch_size: int = 48,
        length: int = 16_000,
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("patch_size", patch_size, 1), ("length", length, 1), ("seed", seed, 0)):
            if value < least:
                raise AclaError(f"{name}={value}; use {least} or more")
        self.task = task
        self.patch_size = patch_size
        self.length = length
        self.augment = augment
        self.seed = seed
        # Shared, so that workers that live on (persistent_workers=True) see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._store = ImageStore(int(_USABLE * psutil.virtual_memory().available))
        self._pairs = self._load_all([Path(path) for path in paths])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose patches come next; call it before the loader's iterator is made."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return patch `index` of the current epoch.

        Returns:
            lq: (in_channels, patch_size, patch_size) float32, in 0..1 but for noise.
            hq: (out_channels, patch_size * scale, patch_size * scale) float32, in 0..1.

        Raises:
            IndexError: not 0 <= index < length.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"patch {index} of {self.length}")
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        lq, hq = (x if x is None else ImageStore.get(x) for x in self._pairs[rng.integers(len(self._pairs))])
        assert hq is not None
        scale, size = self.task.scale, self.patch_size
        top = rng.integers(hq.shape[0] // scale - size + 1)
        left = rng.integers(hq.shape[1] // scale - size + 1)
        way = int(rng.integers(8)) if self.augment else 0
        hq_patch = _turn(hq[scale * top : scale * (top + size), scale * left : scale * (left + size)], way)
        if lq is None:
            lq_patch = self.task.degrade(hq_patch, rng)
        else:
            lq_patch = _turn(lq[top : top + size, left : left + size], way)
        return image_to_tensor(lq_patch), image_to_tensor(hq_patch)

    def _load_all(self, paths: list[Path]) -> list[_Pair]:
        """Read and degrade the images; warn of those that cannot be used, fail if none can."""
        with ThreadPoolExecutor() as pool:
            loaded = list(pool.map(self._load, range(len(paths)), paths))
        pairs = [item for item in loaded if isinstance(item, tuple)]
        self.paths = [path for path, item in zip(paths, loaded) if isinstance(item, tuple)]
        unusable = [item for item in loaded if not isinstance(item, tuple)]
        if not pairs:
            too_small = [item for item in unusable if isinstance(item, _TooSmallError)]
            if too_small:
                raise AclaError(
                    f"no image is large enough; the largest: {max(too_small, key=lambda e: e.fits)}"
                )
            first = f"; the first: {unusable[0]}" if unusable else ""
            raise AclaError(f"no readable image among {len(paths)} files{first}")
        if self._store.on_disk:
            warnings.warn(
                f"{self._store.on_disk / 1e9:.1f} GB of images do not fit half of the free memory: they are "
                f"read from {self._store.folder}",
                AclaWarning,
                stacklevel=3,
            )
        for error in unusable:
            warnings.warn(f"image skipped: {error}", AclaWarning, stacklevel=3)
        return pairs

    def _load(self, index: int, path: Path) -> _Pair | AclaError:
        """Return the pair, or, for `_load_all` to report in order, what is wrong with the image."""
        try:
            image = load_image(path)
        except AclaError as error:
            return error
        hq = self.task.prepare(image)
        fits = min(hq.shape[:2]) // self.task.scale
        if fits < self.patch_size:
            return _TooSmallError(path, image.shape, self.patch_size, self.task.scale, fits)
        if self.task.per_patch:
            return None, self._store.keep(hq)
        lq = self.task.degrade(hq, np.random.default_rng([self.seed, index]))
        return self._store.keep(lq), self._store.keep(hq)


class _TooSmallError(AclaError):
    """An image is smaller than a patch; `fits` is the largest patch, in lq pixels, that it has room for."""

    def __init__(self, path: Path, shape: tuple[int, ...], patch_size: int, scale: int, fits: int) -> None:
        remedy = f"set data.patch_size={fits} or remove it" if fits else "remove it"
        super().__init__(
            f"{path} is {shape[1]}x{shape[0]} pixels, smaller than a patch of {patch_size} at scale {scale} "
            f"({patch_size * scale}x{patch_size * scale}); {remedy}"
        )
        self.fits = fits


def _turn(image: np.ndarray, way: int) -> np.ndarray:
    """Return one of the 8 symmetries of the square, a view: each of way's three bits is one flip."""
    image = image[:, ::-1] if way & 1 else image
    image = image[::-1] if way & 2 else image
    return image.swapaxes(0, 1) if way & 4 else image
