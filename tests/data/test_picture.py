"""Image files with all that must survive: read, written and read again."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from acla_nas.data.picture import Picture, load_picture, save_picture
from acla_nas.errors import AclaError

RNG = np.random.default_rng(0)


def pixels(channels, dtype=np.uint8, height=5, width=7):
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_png_keeps_everything(dtype, channels, has_alpha, tmp_path):
    alpha = pixels(1, dtype)[..., 0] if has_alpha else None
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    given = Picture(pixels(channels, dtype), alpha, exif.tobytes(), profile)
    save_picture(given, tmp_path / "a" / "picture.png")
    got = load_picture(tmp_path / "a" / "picture.png")
    assert got.pixels.dtype == dtype and (got.pixels == given.pixels).all()
    assert (got.alpha is None) == (alpha is None)
    if alpha is not None:
        assert got.alpha.dtype == dtype and (got.alpha == alpha).all()
    assert got.icc_profile == profile
    read = Image.Exif()
    read.load(got.exif)
    assert read[0x010F] == "a camera"
    Image.open(tmp_path / "a" / "picture.png").verify()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels(3)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    picture = load_picture(tmp_path / "turned.png")
    assert (picture.pixels == expected).all()
    save_picture(picture, tmp_path / "upright.png")
    assert (load_picture(tmp_path / "upright.png").pixels == expected).all()
    assert 0x0112 not in Image.open(tmp_path / "upright.png").getexif()


def test_deep_orientation(tmp_path):
    deep = pixels(3, np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    save_picture(Picture(deep, exif=exif.tobytes()), tmp_path / "deep.png")
    assert (load_picture(tmp_path / "deep.png").pixels == np.rot90(deep, -1)).all()


@pytest.mark.parametrize("channels", [3, 4])
def test_deep_colours_of_a_file_without_exif(channels, tmp_path):
    deep = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., [2, 1, 0, 3][:channels]])
    picture = load_picture(tmp_path / "deep.png")
    assert (picture.pixels == deep[..., :3]).all()
    assert picture.alpha is None if channels == 3 else (picture.alpha == deep[..., 3]).all()


def test_palettes_and_bitmaps(tmp_path):
    colours = Image.fromarray(pixels(3)).quantize(8)
    colours.save(tmp_path / "palette.png")
    assert (load_picture(tmp_path / "palette.png").pixels == np.asarray(colours.convert("RGB"))).all()
    colours.save(tmp_path / "transparent.png", transparency=0)
    picture = load_picture(tmp_path / "transparent.png")
    assert picture.pixels.shape == (5, 7, 3) and set(np.unique(picture.alpha)) == {0, 255}
    Image.fromarray(pixels(1)[..., 0]).convert("1").save(tmp_path / "bits.png")
    assert load_picture(tmp_path / "bits.png").pixels.shape == (5, 7, 1)


def test_deep_tiff_is_read(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for channels in (1, 3):
        deep = pixels(channels, np.uint16)
        tifffile.imwrite(tmp_path / "deep.tif", deep.squeeze())
        picture = load_picture(tmp_path / "deep.tif")
        assert picture.pixels.dtype == np.uint16 and (picture.pixels == deep).all()


@pytest.mark.parametrize(
    ("name", "picture", "told"),
    [
        ("a.jpg", Picture(pixels(3), pixels(1)[..., 0]), "have no transparency; use .png"),
        ("a.tif", Picture(pixels(3, np.uint16)), "16 bits are written to .png files only"),
        ("a.gif", Picture(pixels(3)), "unknown suffix '.gif'"),
    ],
)
def test_what_a_format_cannot_hold_is_not_written(name, picture, told, tmp_path):
    with pytest.raises(AclaError, match=told):
        save_picture(picture, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "text.png").write_text("nothing")
    frames = [Image.fromarray(pixels(3)) for _ in range(3)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "floats.tif")
    for name, told in (
        ("text.png", "not an image"),
        ("absent.png", "No such file"),
        ("pages.tif", "it holds 3 images"),
        ("floats.tif", "pixels of type float32 have no fixed range"),
    ):
        with pytest.raises(AclaError, match=rf"cannot read image .*{name}: {told}"):
            load_picture(tmp_path / name)
