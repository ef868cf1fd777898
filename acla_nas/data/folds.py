"""Cross-validation: which training images a fold trains on, and which it holds out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from acla_nas.errors import AclaError


def split_fold(paths: Sequence[str | Path], fold: int, folds: int = 5) -> tuple[list[Path], list[Path]]:
    """Split images into those to train on and those that a fold holds out: every image is held out once.

    The split depends on the files' names alone: not on the folder, the order of the paths, or a seed. Names
    are shuffled by their SHA-256, so that neighbours, which often show the same scene, part.

    Args:
        paths: image files, of different names.
        fold: 1 to `folds`.
        folds: how many; each holds out a `folds`-th of the images, one more or less.

    Returns:
        The images to train on and those held out, each in the order given.

    Raises:
        AclaError: the fold is not one of them, there are fewer images than folds, or two of one name.

    Example:
        >>> train, held_out = split_fold([f"{i}.png" for i in range(10)], fold=1)
        >>> len(train), [path.name for path in held_out]
        (8, ['1.png', '6.png'])
    """
    if not 1 <= fold <= folds or folds < 2:
        raise AclaError(
            f"fold {fold} of {folds} does not exist; use folds of 2 or more, and 1 <= fold <= folds"
        )
    if len(paths) < folds:
        raise AclaError(
            f"{len(paths)} images cannot be split into {folds} folds; give more, or set data.folds"
        )
    names = sorted(
        (Path(path).name for path in paths), key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise AclaError(
            f"{count} images are called {name}; give them different names to split them into folds"
        )
    held_out = set(names[fold - 1 :: folds])
    split: tuple[list[Path], list[Path]] = [], []
    for path in map(Path, paths):
        split[path.name in held_out].append(path)
    return split
