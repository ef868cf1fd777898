"""Reading, writing and finding images: every kind of file comes in as one kind of array, 8-bit RGB."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from acla_nas.data.embedded import embedded_images
from acla_nas.errors import AclaError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""The suffixes, in lower case, of files taken for images."""


def load_image(path: str | Path) -> np.ndarray:
    """Read an image file as 8-bit RGB.

    Grey is repeated over the three channels, transparency is dropped (not blended), of 16 bits the upper 8
    are kept, and the orientation that a camera noted in EXIF is applied.

    Args:
        path: the file, in any format that Pillow reads.

    Returns:
        (H, W, 3) uint8, a fresh array.

    Raises:
        AclaError: the file is missing, no image, damaged, or of a pixel type without a fixed range (floats).

    Example:
        >>> load_image(embedded_images("test")[0]).shape
        (300, 451, 3)
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                return _from_deep_grey(np.asarray(image))
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise AclaError(f"cannot read image {path}: {_reason(error)}; remove or replace it") from error


def save_image(image: np.ndarray, path: str | Path) -> None:
    """Write an image to a file, in the format that the file's suffix names; missing folders are made.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) RGB, uint8.
        path: where to; use .png to keep every bit.

    Raises:
        AclaError: the array is no such image, the suffix is unknown, or the file cannot be written.

    Example:
        >>> save_image(np.zeros((4, 4, 3), dtype=np.uint8), "/tmp/black.png")
    """
    path = Path(path)
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] not in (1, 3))
    ):
        raise AclaError(
            f"cannot save an array of shape {image.shape}, {image.dtype}, as {path}; "
            "give a uint8 (H, W) or (H, W, 3) image"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise AclaError(
            f"cannot save image {path}: unknown suffix {path.suffix!r}; use one of {', '.join(SUFFIXES)}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(path)
    except OSError as error:
        raise AclaError(f"cannot save image {path}: {_reason(error)}") from error


def list_images(source: str | Path, split: str) -> list[Path]:
    """Return the image files of a folder in natural order (img2 before img10), or the embedded images.

    Only the folder itself is searched, not the folders in it; hidden files are left out, and no file is
    opened.

    Args:
        source: a folder, or the word "embedded" for the images that come with scikit-image
            (a folder of that name is "./embedded").
        split: "train", "validation" or "test": which of the embedded images; a folder's are all returned.

    Returns:
        At least one path.

    Raises:
        AclaError: the folder is missing, is no folder, or holds no images; or the split is unknown.

    Example:
        >>> [path.name for path in list_images("embedded", "test")]
        ['chelsea.png', 'rocket.jpg']
    """
    if source == "embedded":
        return embedded_images(split)
    folder = Path(os.path.expanduser(source))
    remedy = f"give a folder with png/jpg/... images or embedded, in a configuration data.{split}=DIR"
    if not folder.exists():
        raise AclaError(f"image folder {source} does not exist; {remedy}")
    if not folder.is_dir():
        raise AclaError(f"image folder {source} is not a folder; {remedy}")
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    except OSError as error:
        raise AclaError(f"image folder {source} cannot be read: {_reason(error)}; {remedy}") from error
    if not files:
        raise AclaError(f"image folder {source} holds no images ({', '.join(SUFFIXES)}); {remedy}")
    return sorted(files, key=_natural_key)


def check_targets(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Raise AclaError where two image files, each with the file it is to be written to, share that one."""
    names: dict[Path, Path] = {}
    for path, to in pairs:
        if to in names:
            raise AclaError(f"{names[to]} and {path} would both be written to {to}: rename one of them")
        names[to] = path


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Compare runs of digits as numbers; the plain name settles ties such as 1.png and 01.png."""
    parts = re.split(r"(\d+)", path.stem.lower())
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], path.name


def _from_deep_grey(grey: np.ndarray) -> np.ndarray:
    if not np.issubdtype(grey.dtype, np.integer) or grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"pixels of type {grey.dtype} have no fixed range (8 or 16 bits have)")
    return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)


def _reason(error: Exception) -> str:
    """Return one short line; Pillow's and the system's own texts repeat the path."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of an unknown format"
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return reason.splitlines()[0]
