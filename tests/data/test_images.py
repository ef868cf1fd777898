"""Every kind of image file comes in as 8-bit RGB; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acla_nas.data import embedded_images, list_images, load_image, save_image
from acla_nas.errors import AclaError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_rgb_comes_back_exactly(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif", "TIFF"):
        save_image(RGB, tmp_path / "new" / f"a.{suffix}")
        np.testing.assert_array_equal(load_image(tmp_path / "new" / f"a.{suffix}"), RGB)


def test_grey_is_repeated(tmp_path: Path) -> None:
    for grey in (RGB[..., 0], RGB[..., :1]):
        save_image(grey, tmp_path / "a.png")
        np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.repeat(RGB[..., :1], 3, axis=2))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([RGB, np.zeros((6, 9), dtype=np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_down(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.dtype == np.uint8 and loaded.shape == (1, 5, 3)
    assert loaded[0, :, 2].tolist() == [0, 0, 1, 128, 255]


def test_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    Image.new("P", (4, 3), 1).save(tmp_path / "p.png")
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "c.tif")
    assert load_image(tmp_path / "p.png").shape == (3, 4, 3)
    assert load_image(tmp_path / "c.tif")[0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(RGB, -1))


def test_unreadable_files_are_named_in_one_line(tmp_path: Path) -> None:
    save_image(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    for name in ("cut.png", "text.png", "empty.jpg", "float.tif", "missing.png"):
        with pytest.raises(AclaError) as error:
            load_image(tmp_path / name)
        text = str(error.value)
        assert text.startswith(f"cannot read image {tmp_path / name}: ")
        assert text.endswith("; remove or replace it")
        assert "\n" not in text and text.count(str(tmp_path)) == 1


def test_save_refuses(tmp_path: Path) -> None:
    with pytest.raises(AclaError, match="float64"):
        save_image(RGB / 255, tmp_path / "a.png")
    with pytest.raises(AclaError, match=r"\(6, 9, 2\)"):
        save_image(RGB[..., :2], tmp_path / "a.png")
    with pytest.raises(AclaError, match=r"unknown suffix '\.gif'"):
        save_image(RGB, tmp_path / "a.gif")
    (tmp_path / "file").touch()
    with pytest.raises(AclaError, match="cannot save image"):
        save_image(RGB, tmp_path / "file" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_list_is_in_natural_order_and_of_images_only(tmp_path: Path) -> None:
    names = ["img1.png", "img2.JPG", "img10.webp", "x.bmp", "x2.TIF", "x2b.tiff", "x10.jpeg"]
    for name in [*reversed(names), "notes.txt", ".hidden.png"]:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.png").touch()
    assert [path.name for path in list_images(tmp_path, "train")] == names
    assert list_images(str(tmp_path), "test") == list_images(tmp_path, "train")


def test_embedded_is_a_source() -> None:
    assert list_images("embedded", "validation") == embedded_images("validation")


def test_missing_and_empty_folders_are_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, problem in (
        ("nowhere", "does not exist"),
        ("empty", "holds no images"),
        ("file", "not a folder"),
    ):
        with pytest.raises(AclaError) as error:
            list_images(tmp_path / name, "validation")
        text = str(error.value)
        assert f"image folder {tmp_path / name}" in text and problem in text
        assert text.endswith(
            "give a folder with png/jpg/... images or embedded, in a configuration data.validation=DIR"
        )
        assert "\n" not in text
