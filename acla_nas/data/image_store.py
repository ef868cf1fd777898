"""Decoded images: in memory as long as they fit, then in files that are mapped into memory."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import numpy as np

from acla_nas.cache_folder import cache_folder
from acla_nas.errors import AclaError

Stored = np.ndarray | Path


class ImageStore:
    """Arrays of which no more than so many bytes are kept in memory; the others are files.

    The files are in a folder of their own below :func:`acla_nas.cache_folder.cache_folder`, which goes with
    the store. Images may come from several threads at a time.

    Args:
        limit: bytes.

    Attributes:
        in_memory: bytes that are.
        on_disk: bytes that are not.

    Example:
        >>> store = ImageStore(limit=10)
        >>> small, large = store.keep(np.zeros(10, np.uint8)), store.keep(np.ones(10, np.uint8))
        >>> store.in_memory, store.on_disk, int(ImageStore.get(large).sum())
        (10, 10, 10)
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_memory = self.on_disk = 0
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    @property
    def folder(self) -> Path | None:
        """Where the files are; None as long as there are none."""
        return None if self._folder is None else Path(self._folder.name)

    def keep(self, image: np.ndarray) -> Stored:
        """Keep an image, and return what :meth:`get` finds it by.

        Raises:
            AclaError: its file cannot be written.
        """
        with self._lock:
            if self.in_memory + image.nbytes <= self.limit:
                self.in_memory += image.nbytes
                return image
            path = self._next_file()
            self.on_disk += image.nbytes
        try:
            np.save(path, image)
        except OSError as error:
            raise self._cannot_write(path, error) from error
        return path

    def _next_file(self) -> Path:
        if self._folder is None:
            parent = cache_folder() / "images"
            try:
                parent.mkdir(parents=True, exist_ok=True)
                self._folder = tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True)
            except OSError as error:
                raise self._cannot_write(parent, error) from error
        self._files += 1
        return Path(self._folder.name) / f"{self._files}.npy"

    def _cannot_write(self, path: Path, error: OSError) -> AclaError:
        return AclaError(
            f"the images do not fit the memory, and cannot be written to {path}: {error.strerror or error}; "
            "use fewer, or set ACLA_NAS_CACHE to a folder on a disk with room"
        )

    def __reduce__(self) -> tuple[type[ImageStore], tuple[int]]:
        """A copy in another process has nothing, and leaves the files alone."""
        return ImageStore, (0,)

    @staticmethod
    def get(stored: Stored) -> np.ndarray:
        """Return an image, of a file no more than is looked at."""
        if isinstance(stored, Path):
            image: np.ndarray = np.load(stored, mmap_mode="r")
            return image
        return stored
