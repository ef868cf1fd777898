"""The low-resolution images that are written: those that were published."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.data import load_image, save_image, write_low_resolution
from acla_nas.errors import AclaError
from acla_nas.tasks import SuperResolution


@pytest.fixture
def hr(tmp_path):
    for i, size in enumerate([(20, 31), (18, 13)]):
        image = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        save_image(image, tmp_path / "hr" / f"{i}.png")
    return tmp_path / "hr"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_what_networks_are_trained_on(hr, scale, tmp_path):
    task, written = SuperResolution(scale), list(write_low_resolution(hr, tmp_path / "lr", scale))
    assert [path.name for path in written] == [f"0x{scale}.png", f"1x{scale}.png"]
    for path, source in zip(written, sorted(hr.iterdir())):
        expected = task.degrade(task.prepare(load_image(source)), np.random.default_rng(0))
        assert (load_image(path) == expected).all()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_published_pixels(shared_data, scale, tmp_path):
    golden = sorted((shared_data / "golden" / "Set5_LR_bicubic_matlab").rglob(f"*x{scale}*.png"))
    assert golden
    written = list(write_low_resolution(shared_data / "eval" / "Set5", tmp_path, scale))
    for made, published in zip(written, golden, strict=True):
        assert made.stem.split("_")[0] == published.stem.split("_")[0]
        assert (load_image(made) == load_image(published)).all(), published


def test_nothing_is_overwritten_silently(hr, tmp_path):
    first = list(write_low_resolution(hr, tmp_path / "lr", 2, suffix=""))
    first[1].write_text("dear to me")
    with pytest.raises(AclaError, match=r"0\.png exists already: give another folder, or let"):
        list(write_low_resolution(hr, tmp_path / "lr", 2, suffix=""))
    assert list(write_low_resolution(hr, tmp_path / "lr", 2, suffix="", existing="skip")) == []
    assert first[1].read_text() == "dear to me"
    assert len(list(write_low_resolution(hr, tmp_path / "lr", 2, suffix="", existing="replace"))) == 2


def test_what_cannot_be(hr, tmp_path):
    with pytest.raises(AclaError, match="scale must be 2 or more, not 1"):
        list(write_low_resolution(hr, tmp_path / "lr", 1))
    with pytest.raises(AclaError, match="smaller than the scale, 14"):
        list(write_low_resolution(hr, tmp_path / "lr", 14))
    for suffix in ("/../x", "a/b"):
        with pytest.raises(AclaError, match="is no part of a file's name"):
            list(write_low_resolution(hr, tmp_path / "none", 2, suffix=suffix))
    save_image(load_image(hr / "0.png"), hr / "0.bmp")
    with pytest.raises(AclaError, match=r"would both be written to .*0x2\.png: rename one"):
        list(write_low_resolution(hr, tmp_path / "none", 2))
    assert not (tmp_path / "none").exists()
