"""Checking folders of images: how many and how large, which are damaged, which are there twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from acla_nas.data.images import list_images, load_image
from acla_nas.errors import AclaError

NEAR = 6  # of 64 bits in which the perceptual hashes of near duplicates may differ


class Pair(NamedTuple):
    """Two files that show the same.

    Attributes:
        first: a file of the folder.
        second: another one of it, or one of the folder that it is checked against.
        distance: 0 where all pixels are equal; else 1 plus the bits in which their perceptual hashes differ.
    """

    first: str
    second: str
    distance: int


@dataclass(frozen=True)
class Check:
    """What was found in a folder of images.

    Attributes:
        folder: that was checked.
        other: the folder that it was compared with, if any.
        count: images that can be read.
        smallest: (W, H) of the one with the fewest pixels.
        largest: (W, H) of the one with the most.
        sizes: "WxH" -> how many, the most frequent first.
        damaged: file, of either folder -> why it cannot be read.
        within: pairs in the folder.
        against: pairs with the other folder, that none may be in if one is for training, one for tests.
    """

    folder: str
    other: str | None
    count: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    sizes: dict[str, int]
    damaged: dict[str, str]
    within: tuple[Pair, ...]
    against: tuple[Pair, ...]

    @property
    def is_clean(self) -> bool:
        """Nothing is damaged, nothing is there twice."""
        return not (self.damaged or self.within or self.against)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        pairs = {name: [pair._asdict() for pair in getattr(self, name)] for name in ("within", "against")}
        return {**asdict(self), **pairs, "is_clean": self.is_clean}

    def text(self) -> str:
        """Return it as lines to read."""
        shown = ", ".join(f"{size} ({count})" for size, count in list(self.sizes.items())[:5])
        more = f" and {len(self.sizes) - 5} more sizes" if len(self.sizes) > 5 else ""
        lines = [f"{self.folder}: {self.count} images, {shown}{more}"]
        lines += [f"damaged: {path}: {why}" for path, why in self.damaged.items()]
        for name, pairs in (("twice", self.within), ("in both", self.against)):
            lines += [f"{name}: {first} and {second}{_how(distance)}" for first, second, distance in pairs]
        if self.is_clean:
            apart = f", none is in {self.other}" if self.other is not None else ""
            lines.append(f"none is damaged, none is there twice{apart}")
        return "\n".join(lines)


def _how(distance: int) -> str:
    return ", equal" if not distance else f", nearly equal ({distance - 1} of 64 bits of their hashes differ)"


class _Seen(NamedTuple):
    path: Path
    size: tuple[int, int]
    digest: bytes
    bits: int


def check_images(folder: str | Path, against: str | Path | None = None) -> Check:
    """Read all images of a folder and say what is wrong with them.

    Two images are equal if their pixels are, whatever the files; nearly equal, such as one and its resized
    or compressed copy, if their perceptual hashes (pHash: the signs of an image's lowest frequencies, 64
    bits) differ in 6 bits at most. Flat images have hashes that say nothing, and are compared by pixels only.

    Args:
        folder: of images; those in folders within it do not count.
        against: another folder, as of test images where the first is for training.

    Raises:
        AclaError: a folder is missing or has no image, or none that can be read.

    Example:
        >>> from acla_nas.data import imresize, load_image, embedded_images, save_image
        >>> image = load_image(embedded_images("test")[0])
        >>> save_image(image, "train/cat.png")
        >>> save_image(imresize(image, 0.5), "test/small_cat.png")
        >>> check = check_images("train", against="test")
        >>> check.count, [pair.second for pair in check.against]
        (1, ['test/small_cat.png'])
    """
    damaged: dict[str, str] = {}
    own = _read(list_images(folder, "train"), damaged)
    if not own:
        raise AclaError(f"none of the images in {folder} can be read")
    other = [] if against is None else _read(list_images(against, "test"), damaged)
    by_area = sorted((seen.size for seen in own), key=lambda size: size[0] * size[1])
    sizes = Counter(f"{width}x{height}" for width, height in by_area)
    return Check(
        str(folder),
        None if against is None else str(against),
        len(own),
        by_area[0],
        by_area[-1],
        dict(sizes.most_common()),
        damaged,
        tuple(pair for i, seen in enumerate(own) for pair in _pairs(seen, own[i + 1 :])),
        tuple(pair for seen in own for pair in _pairs(seen, other)),
    )


def _read(paths: Sequence[Path], damaged: dict[str, str]) -> list[_Seen]:
    import imagehash

    found = []
    for path in paths:
        try:
            image = load_image(path)
        except AclaError as error:
            damaged[str(path)] = str(error).removeprefix(f"cannot read image {path}: ").partition(";")[0]
            continue
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        bits = int("".join(str(int(bit)) for bit in imagehash.phash(Image.fromarray(image)).hash.flat), 2)
        is_flat = float(image.std()) < 2
        found.append(_Seen(path, (image.shape[1], image.shape[0]), digest, 0 if is_flat else bits))
    return found


def _pairs(one: _Seen, others: Sequence[_Seen]) -> list[Pair]:
    """Return the pairs of an image with those of others that show the same."""
    pairs = []
    for other in others:
        differing = (one.bits ^ other.bits).bit_count()
        if other.digest == one.digest:
            pairs.append(Pair(str(one.path), str(other.path), 0))
        elif one.bits and other.bits and differing <= NEAR:
            pairs.append(Pair(str(one.path), str(other.path), 1 + differing))
    return pairs
