"""Patches and pairs: reproducible, aligned, and clear about images that cannot be used."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from acla_nas.data import (
    PairDataset,
    PatchDataset,
    image_to_tensor,
    list_images,
    load_image,
    save_image,
    tensor_to_image,
)
from acla_nas.errors import AclaError
from acla_nas.tasks import SuperResolution, Task


class Noise(Task):
    """Random, unrounded and drawn for every patch: what super-resolution is not."""

    name, baseline_name = "noise", "nothing"
    per_patch = True

    def degrade(self, hq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (hq + rng.normal(0, 25, hq.shape)).astype(np.float32)

    def baseline(self, lq: np.ndarray) -> np.ndarray:
        return np.clip(lq, 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i, size in enumerate([(30, 41), (36, 33), (64, 64)]):
        save_image(rng.integers(0, 256, (*size, 3), dtype=np.uint8), tmp_path / f"{i}.png")
    return tmp_path


def _patches(folder: Path, **options: object) -> PatchDataset:
    options = {"patch_size": 8, "length": 12, **options}
    return PatchDataset(SuperResolution(2), list_images(folder, "train"), **options)  # type: ignore[arg-type]


def _all(dataset: PatchDataset, **options: object) -> torch.Tensor:
    return torch.cat([hq for _, hq in DataLoader(dataset, batch_size=4, **options)])  # type: ignore[arg-type]


def test_shapes_range_and_dtype(folder: Path) -> None:
    dataset = _patches(folder)
    assert len(dataset) == 12
    for lq, hq in (dataset[i] for i in range(12)):
        assert lq.shape == (3, 8, 8) and hq.shape == (3, 16, 16)
        assert lq.dtype == hq.dtype == torch.float32
        assert 0 <= hq.min() < 0.1 and 0.9 < hq.max() <= 1


@pytest.mark.parametrize("augment", [False, True])
def test_lq_is_cut_from_the_degraded_whole_image_where_hq_is(folder: Path, augment: bool) -> None:
    places = set()
    images = [load_image(path) for path in list_images(folder, "train")]
    task = SuperResolution(2)
    pairs = [(task.degrade(hq, np.random.default_rng(0)), hq) for hq in map(task.prepare, images)]
    found = {}
    for number, (lq, hq) in enumerate(pairs):
        for top in range(lq.shape[0] - 7):
            for left in range(lq.shape[1] - 7):
                patch = hq[2 * top : 2 * top + 16, 2 * left : 2 * left + 16]
                found[patch.tobytes()] = number, top, left, lq[top : top + 8, left : left + 8]
    dataset = _patches(folder, augment=augment, length=40)
    for lq_patch, hq_patch in (dataset[i] for i in range(40)):
        lq_image, hq_image = tensor_to_image(lq_patch), tensor_to_image(hq_patch)
        matches = []
        for way in range(8):
            lq_turned, hq_turned = (
                np.rot90(image[:, ::-1] if way & 4 else image, way & 3) for image in (lq_image, hq_image)
            )
            if hq_turned.tobytes() in found:
                *place, expected = found[hq_turned.tobytes()]
                np.testing.assert_array_equal(lq_turned, expected)
                matches.append(way)
                places.add((*place, way))
        assert len(matches) == 1
    assert len({place[0] for place in places}) == 3
    assert len({place[3] for place in places}) == (8 if augment else 1)
    assert len(places) > 30


def test_patch_depends_on_seed_epoch_and_index_only(folder: Path) -> None:
    first = _all(_patches(folder))
    dataset = _patches(folder)
    backwards = torch.stack([dataset[i][1] for i in reversed(range(12))]).flip(0)
    torch.testing.assert_close(backwards, first, rtol=0, atol=0)
    assert len({patch.numpy().tobytes() for patch in first}) == 12
    dataset.set_epoch(1)
    second = _all(dataset)
    assert not torch.equal(first, second)
    dataset.set_epoch(0)
    assert torch.equal(_all(dataset), first)
    assert not torch.equal(_all(_patches(folder, seed=1)), first)
    resumed = _patches(folder)
    resumed.set_epoch(1)
    assert torch.equal(_all(resumed), second)
    assert torch.equal(_all(pickle.loads(pickle.dumps(resumed))), second)


def test_workers_do_not_change_the_data_and_hear_of_epochs(folder: Path) -> None:
    dataset = _patches(folder)
    alone = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        alone.append(_all(dataset))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, of forking with threads
        loader = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True)
        for epoch in range(2):
            dataset.set_epoch(epoch)
            assert torch.equal(torch.cat([hq for _, hq in loader]), alone[epoch])


def test_index_out_of_range(folder: Path) -> None:
    for index in (-1, 12):
        with pytest.raises(IndexError):
            _patches(folder)[index]


def test_random_degradation_is_drawn_anew_for_each_patch_and_not_rounded(folder: Path) -> None:
    paths = list_images(folder, "train")[:1]
    dataset = PatchDataset(Noise(), paths, patch_size=30, length=8, augment=False)
    noise = torch.stack([lq - hq for lq, hq in (dataset[i] for i in range(8))])
    assert noise.std().item() == pytest.approx(25 / 255, rel=0.02)
    assert len({sample.numpy().tobytes() for sample in noise}) == 8
    again = PatchDataset(Noise(), paths, patch_size=30, length=8, augment=False)
    assert torch.equal(again[5][0], dataset[5][0])
    assert (dataset[0][0] * 255 % 1).std() > 0.2


def test_unreadable_image_is_named_and_skipped(folder: Path) -> None:
    good = _all(_patches(folder))
    (folder / "3.png").write_text("no image")
    with pytest.warns(UserWarning) as caught:
        dataset = _patches(folder)
    assert [str(warning.message) for warning in caught] == [
        f"image skipped: cannot read image {folder / '3.png'}: not an image, or of an unknown format; "
        "remove or replace it"
    ]
    assert caught[0].filename == __file__
    assert torch.equal(_all(dataset), good)


def test_small_image_is_named_and_skipped(folder: Path) -> None:
    with pytest.warns(UserWarning) as caught:
        dataset = _patches(folder, patch_size=16)
    assert [str(warning.message) for warning in caught] == [
        f"image skipped: {folder / '0.png'} is 41x30 pixels, smaller than a patch of 16 at scale 2 (32x32); "
        "set data.patch_size=15 or remove it"
    ]
    assert dataset[0][0].shape == (3, 16, 16)


def test_no_image_large_enough(folder: Path) -> None:
    with pytest.raises(AclaError) as error:
        _patches(folder, patch_size=48)
    assert str(error.value) == (
        f"no image is large enough; the largest: {folder / '2.png'} is 64x64 pixels, smaller than a patch of "
        "48 at scale 2 (96x96); set data.patch_size=32 or remove it"
    )
    with pytest.warns(UserWarning, match="skipped"):
        remedied = _patches(folder, patch_size=32)
    assert remedied[0][0].shape == (3, 32, 32)


def test_no_readable_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(
        AclaError, match=r"no readable image among 1 files; the first: cannot read image .*a\.png"
    ):
        _patches(tmp_path)
    with pytest.raises(AclaError, match="no readable image among 0 files"):
        PatchDataset(SuperResolution(2), [])


@pytest.mark.parametrize(("name", "value"), [("patch_size", 0), ("length", 0), ("seed", -1)])
def test_numbers_out_of_range(folder: Path, name: str, value: int) -> None:
    with pytest.raises(AclaError, match=f"{name}={value}"):
        _patches(folder, **{name: value})


def test_tensors_and_images_convert_exactly() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    image[..., 1] //= 2
    tensor = image_to_tensor(image)
    assert tensor.shape == (3, 8, 32) and tensor.max() == 1
    np.testing.assert_array_equal(tensor_to_image(tensor), image)
    assert tensor_to_image(torch.tensor([[[-1.0, 2.0, 0.5]]], dtype=torch.bfloat16)).ravel().tolist() == [
        0,
        255,
        128,
    ]


def test_pairs_are_whole_images_in_order(folder: Path) -> None:
    dataset = PairDataset(SuperResolution(3), list_images(folder, "test"))
    assert len(dataset) == 3
    lq, hq, name = dataset[0]
    assert lq.shape == (3, 10, 13) and hq.shape == (3, 30, 39) and name == "0"
    np.testing.assert_array_equal(tensor_to_image(hq), load_image(folder / "0.png")[:, :39])


def test_pairs_noise_depends_on_seed_and_index_only(folder: Path) -> None:
    path = folder / "0.png"
    dataset = PairDataset(Noise(), [path, path])
    assert torch.equal(dataset[1][0], dataset[1][0])
    assert not torch.equal(dataset[0][0], dataset[1][0])
    assert not torch.equal(dataset[0][0], PairDataset(Noise(), [path], seed=1)[0][0])


def test_pairs_of_one_stem_are_told_apart(folder: Path) -> None:
    assert PairDataset(Noise(), ["a.png", "a.jpg", "b.png"]).names == ["a.png", "a.jpg", "b"]


def test_pairs_fail_on_what_cannot_be_used(folder: Path) -> None:
    (folder / "bad.png").write_text("no image")
    save_image(np.zeros((1, 9, 3), dtype=np.uint8), folder / "thin.png")
    dataset = PairDataset(SuperResolution(2), [folder / "bad.png", folder / "thin.png"])
    with pytest.raises(AclaError, match=r"cannot read image .*bad\.png"):
        dataset[0]
    with pytest.raises(AclaError, match=r"image .*thin\.png \(9x1\)"):
        dataset[1]
    with pytest.raises(AclaError, match="no images"):
        PairDataset(SuperResolution(2), [])
    with pytest.raises(AclaError, match="seed=-1"):
        PairDataset(SuperResolution(2), ["a.png"], seed=-1)
