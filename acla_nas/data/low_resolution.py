"""Writing the low-resolution images of super-resolution: MATLAB's bicubic imresize, pixel for pixel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from acla_nas.data.images import check_targets, list_images, load_image
from acla_nas.data.imresize import imresize
from acla_nas.data.picture import Picture, save_picture
from acla_nas.errors import AclaError


def write_low_resolution(
    folder: str | Path, target: str | Path, scale: int, *, suffix: str | None = None, existing: str = "fail"
) -> Iterator[Path]:
    """Write each image of a folder smaller, as a PNG file, and yield it.

    As MATLAB's ``imresize(image, 1 / scale, "bicubic")`` on 8-bit images, after cropping at the bottom and
    right to a multiple of the scale, as published sets and this package's tests do.

    Args:
        folder: of the high-resolution images.
        target: folder of what is written; made if missing.
        scale: 2 or more.
        suffix: put after each name, as DIV2K and BasicSR have it: x2 at scale 2 where None.
        existing: "fail", before anything is written, "skip" or "replace" files that are there already.

    Raises:
        AclaError: there are no images; a file is there already; an image cannot be read, or is smaller than
            the scale.

    Example:
        >>> import numpy as np
        >>> from acla_nas.data import save_image
        >>> save_image(np.zeros((9, 12, 3), dtype=np.uint8), "hr/0001.png")
        >>> [path.name for path in write_low_resolution("hr", "lr", 2)]
        ['0001x2.png']
    """
    if scale < 2:
        raise AclaError(f"scale must be 2 or more, not {scale}")
    suffix = f"x{scale}" if suffix is None else suffix
    pairs = [(path, Path(target, f"{path.stem}{suffix}.png")) for path in list_images(folder, "train")]
    if Path(suffix).name != suffix and suffix:
        raise AclaError(f"suffix {suffix!r} is no part of a file's name: leave out what separates folders")
    check_targets(pairs)
    there = [to for _, to in pairs if to.exists()]
    if there and existing == "fail":
        raise AclaError(
            f"{there[0]} exists already: give another folder, or let existing files be skipped or replaced "
            "(--existing, in Python existing=)"
        )
    for path, to in pairs:
        if existing == "skip" and to.exists():
            continue
        image = load_image(path)
        height, width = (n - n % scale for n in image.shape[:2])
        if not (height and width):
            raise AclaError(f"image {path} is smaller than the scale, {scale}")
        save_picture(Picture(imresize(image[:height, :width], 1 / scale)), to)
        yield to
