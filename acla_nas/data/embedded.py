"""The images that come in scikit-image's wheel, to try things out with on a machine without data."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from acla_nas.errors import AclaError, unknown_name

_FILES = {
    "train": (
        "astronaut.png",
        "motorcycle_left.png",
        "camera.png",
        "brick.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
    ),
    "validation": ("coffee.png",),
    "test": ("chelsea.png", "rocket.jpg"),
}


def embedded_images(split: str) -> list[Path]:
    """Return the paths of a split's embedded images; nothing is downloaded, and scikit-image is not imported.

    They are for trying things out: ten images, some grey, some JPEG, are too few and too mixed for
    numbers worth publishing. No image is in two splits.

    Args:
        split: "train" (7 images), "validation" (1) or "test" (2).

    Returns:
        The paths, in a fixed order.

    Raises:
        AclaError: the split is unknown, or the installed scikit-image lacks the images.

    Example:
        >>> [path.name for path in embedded_images("validation")]
        ['coffee.png']
    """
    if split not in _FILES:
        raise unknown_name("split", split, _FILES)
    package = importlib.util.find_spec("skimage")
    folders = package.submodule_search_locations if package else None
    paths = [Path(folder, "data", name) for folder in folders or () for name in _FILES[split]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise AclaError(
            f"the embedded {split} images ({', '.join(missing or _FILES[split])}) are not in the installed "
            "scikit-image; run pip install --force-reinstall scikit-image, "
            f"or set data.{split}=DIR to a folder of images"
        )
    return paths
