"""Images that do not fit the memory are read from files, which go with their dataset."""

from __future__ import annotations

import gc
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from acla_nas.data import PatchDataset, list_images
from acla_nas.data.image_store import ImageStore
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.tasks import SuperResolution


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACLA_NAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_dataset():
    return PatchDataset(SuperResolution(2), list_images("embedded", "train"), patch_size=16, length=8)


def make_spilled_dataset(monkeypatch, available=10**6):
    memory = SimpleNamespace(available=available)
    monkeypatch.setattr("acla_nas.data.patches.psutil", SimpleNamespace(virtual_memory=lambda: memory))
    with pytest.warns(AclaWarning, match=r"GB of images do not fit half of the free memory"):
        return make_dataset()


def patches(dataset, **options):
    return torch.cat(
        [torch.cat([lq.flatten(1), hq.flatten(1)], 1) for lq, hq in DataLoader(dataset, **options)]
    )


@pytest.mark.parametrize("available", [0, 10**6])
def test_patches_from_files_are_those_from_memory(available, cache, monkeypatch):
    expected = patches(make_dataset())
    dataset = make_spilled_dataset(monkeypatch, available)
    assert list(cache.rglob("*.npy")) and dataset._store.in_memory <= available / 2
    assert torch.equal(patches(dataset), expected)
    assert torch.equal(patches(dataset, num_workers=1), expected)
    assert torch.equal(patches(pickle.loads(pickle.dumps(dataset))), expected)
    assert list(cache.rglob("*.npy"))  # the copies left them alone


def test_files_go_with_the_dataset(cache, monkeypatch):
    dataset = make_spilled_dataset(monkeypatch)
    assert list((cache / "images").iterdir())
    del dataset
    gc.collect()
    assert not list((cache / "images").iterdir())


def test_memory_is_used_first():
    store = ImageStore(20)
    kept = [store.keep(np.full(10, i, np.uint8)) for i in range(3)]
    assert [isinstance(x, np.ndarray) for x in kept] == [True, True, False]
    assert [int(ImageStore.get(x)[0]) for x in kept] == [0, 1, 2]


def test_a_disk_without_room_is_one_clear_error(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("acla_nas.data.image_store.np.save", full)
    with pytest.raises(AclaError, match="No space left on device; use fewer, or set ACLA_NAS_CACHE"):
        ImageStore(0).keep(np.zeros(3, np.uint8))


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACLA_NAS_CACHE", str(tmp_path / "file"))
    with pytest.raises(AclaError, match=r"cannot be written to .*file.*set ACLA_NAS_CACHE"):
        ImageStore(0).keep(np.zeros(3, np.uint8))
