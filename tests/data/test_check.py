"""Checking folders of images: counts, damage, and what is there twice, also resized and compressed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acla_nas.data import check_images, embedded_images, imresize, load_image, save_image
from acla_nas.errors import AclaError


def photos():
    return [load_image(path) for split in ("train", "validation", "test") for path in embedded_images(split)]


def test_clean_folders(tmp_path):
    """Different photographs are no near duplicates of one another."""
    for i, photo in enumerate(photos()):
        save_image(photo, tmp_path / ("a" if i % 2 else "b") / f"{i}.png")
    check = check_images(tmp_path / "a", against=tmp_path / "b")
    assert check.is_clean and check.count == len(photos()) // 2
    assert check.text().endswith(f"none is damaged, none is there twice, none is in {tmp_path / 'b'}")


def test_counts_and_sizes(tmp_path):
    for i, size in enumerate([(4, 6), (4, 6), (8, 2)]):
        save_image(
            np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8), tmp_path / f"{i}.png"
        )
    check = check_images(tmp_path)
    assert (check.count, check.smallest, check.largest) == (3, (2, 8), (6, 4))
    assert check.sizes == {"6x4": 2, "2x8": 1}


def test_damaged_files_are_named(tmp_path):
    save_image(photos()[0], tmp_path / "whole.png")
    (tmp_path / "text.png").write_text("nothing")
    half = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    check = check_images(tmp_path)
    assert check.count == 1 and {Path(path).name for path in check.damaged} == {"text.png", "half.png"}
    assert "damaged: " in check.text() and "not an image" in check.text()
    (tmp_path / "train").mkdir()
    shutil.copy(tmp_path / "whole.png", tmp_path / "train" / "other.png")
    assert len(check_images(tmp_path / "train", against=tmp_path).damaged) == 2  # of the other folder
    (tmp_path / "whole.png").unlink()
    with pytest.raises(AclaError, match="none of the images"):
        check_images(tmp_path)


def test_equal_pixels_in_other_files(tmp_path):
    photo = photos()[1]
    save_image(photo, tmp_path / "train" / "a.png")
    save_image(photo, tmp_path / "train" / "b.bmp")
    save_image(photo, tmp_path / "test" / "c.tif")
    check = check_images(tmp_path / "train", against=tmp_path / "test")
    assert [(Path(a).name, Path(b).name, d) for a, b, d in check.within] == [("a.png", "b.bmp", 0)]
    assert [(Path(a).name, Path(b).name, d) for a, b, d in check.against] == [
        ("a.png", "c.tif", 0),
        ("b.bmp", "c.tif", 0),
    ]
    assert "in both: " in check.text() and check.text().endswith(", equal")


def changed(photo, how):
    if how == "small":
        return imresize(photo, 0.5)
    if how == "noisy":
        noise = np.random.default_rng(0).normal(0, 15, photo.shape)
        return np.clip(photo + noise, 0, 255).astype(np.uint8)
    if how == "grey":
        return np.asarray(Image.fromarray(photo).convert("L"))
    return photo[:-1, :-1]


@pytest.mark.parametrize("how", ["small", "noisy", "grey", "cropped by a pixel", "jpeg"])
def test_near_duplicates(how, tmp_path):
    for i, photo in enumerate(photos()):
        save_image(photo, tmp_path / "train" / f"{i}.png")
        if how == "jpeg":
            (tmp_path / "test").mkdir(exist_ok=True)
            Image.fromarray(photo).save(tmp_path / "test" / f"{i}.jpg", quality=20)
        else:
            save_image(changed(photo, how), tmp_path / "test" / f"{i}.png")
    check = check_images(tmp_path / "train", against=tmp_path / "test")
    assert [Path(a).stem for a, _, _ in check.against] == [str(i) for i in range(len(photos()))]
    assert all(Path(a).stem == Path(b).stem for a, b, _ in check.against)
    assert any(d > 0 for *_, d in check.against)  # not all: some hashes stay as they are


def test_flat_images_are_not_near_one_another(tmp_path):
    for grey in (0, 128, 255):
        save_image(np.full((16, 16, 3), grey, np.uint8), tmp_path / f"{grey}.png")
    assert check_images(tmp_path).is_clean
    shutil.copy(tmp_path / "0.png", tmp_path / "again.png")
    assert len(check_images(tmp_path).within) == 1


def test_as_plain_data(tmp_path):
    save_image(photos()[0], tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    data = json.loads(json.dumps(check_images(tmp_path).as_dict()))
    assert data["within"] == [{"first": f"{tmp_path}/a.png", "second": f"{tmp_path}/b.png", "distance": 0}]
    assert data["count"] == 2 and data["is_clean"] is False


def test_published_sets_are_apart(shared_data):
    check = check_images(shared_data / "eval" / "Set5", against=shared_data / "eval" / "Kodak24")
    assert check.is_clean
