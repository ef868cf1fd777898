"""The folds of a cross-validation: apart, complete, even, and decided by names alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from acla_nas.data import list_images, split_fold
from acla_nas.errors import AclaError
from acla_nas.tasks import SuperResolution
from acla_nas.training import make_evaluator

PATHS = [Path("folder", f"{i:04d}.png") for i in range(1, 101)]


@pytest.mark.parametrize(("count", "folds"), [(100, 5), (7, 5), (5, 5), (23, 2), (800, 10)])
def test_every_image_is_held_out_once_and_the_folds_are_even(count: int, folds: int) -> None:
    paths = [Path(f"{i}.png") for i in range(count)]
    held_out = []
    for fold in range(1, folds + 1):
        train, rest = split_fold(paths, fold, folds)
        assert sorted(train + rest) == sorted(paths) and not set(train) & set(rest)
        assert len(rest) in (count // folds, -(-count // folds))
        assert train == [p for p in paths if p in train] and rest == [p for p in paths if p in rest]
        held_out += rest
    assert sorted(held_out) == sorted(paths)


def test_names_alone_decide() -> None:
    train, rest = split_fold(PATHS, 2)
    assert len(rest) == 20
    assert [p.name for p in rest[:3]] == ["0003.png", "0005.png", "0018.png"]  # on every machine, for good
    shuffled = random.Random(0).sample([str(Path("/elsewhere", p.name)) for p in PATHS], len(PATHS))
    again = split_fold(shuffled, 2)
    assert {p.name for p in again[1]} == {p.name for p in rest}
    assert {p.name for p in again[0]} == {p.name for p in train}


def test_neighbours_part() -> None:
    numbers = [int(p.stem) for p in split_fold(PATHS, 1)[1]]
    assert sum(i + 1 in numbers for i in numbers) < 10


@pytest.mark.parametrize(
    ("fold", "folds", "message"),
    [
        (0, 5, "fold 0 of 5 does not exist"),
        (6, 5, "fold 6 of 5 does not exist"),
        (1, 1, "fold 1 of 1 does not exist; use folds of 2 or more"),
        (1, 101, "100 images cannot be split into 101 folds"),
    ],
)
def test_folds_that_do_not_exist(fold: int, folds: int, message: str) -> None:
    with pytest.raises(AclaError, match=message):
        split_fold(PATHS, fold, folds)


def test_two_images_of_one_name() -> None:
    with pytest.raises(AclaError, match=r"2 images are called 0003\.png"):
        split_fold([*PATHS, Path("other", "0003.png")], 1)


def test_a_search_trains_on_the_fold_and_validates_on_what_it_holds_out(images: Path) -> None:
    names = []
    for fold in (1, 2, 3):
        evaluator = make_evaluator(
            SuperResolution(2),
            train=str(images),
            validation="/nowhere",  # not looked at
            fold=fold,
            folds=3,
            patch_size=8,
            batch_size=2,
            steps_per_epoch=1,
            progress=False,
        )
        train = evaluator.train_dataloaders.dataset.paths
        held_out = evaluator.val_dataloaders.dataset.paths
        assert sorted(train + held_out) == list_images(images, "train")
        names += [p.name for p in held_out]
    assert sorted(names) == ["a.png", "b.png", "c.png"]
