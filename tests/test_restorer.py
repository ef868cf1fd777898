"""restore: files of every kind by models of every form, and never over something that is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import randomize

import acla_nas
from acla_nas import Restorer, export, formats, restore, search_spaces
from acla_nas.bench.memory import can_measure
from acla_nas.data.picture import Picture, load_picture, save_picture
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.exporter import save_model
from acla_nas.metrics import luma
from acla_nas.tasks import Demosaicing, SuperResolution
from acla_nas.tiling import restore_tiled

SAMPLE = {"insert/1": True, "insert/2": True, "keys": 2}


def network_of(space, spread=0.3):
    network = space.freeze(SAMPLE).eval()
    randomize(network.attention, spread)
    return network


def small_space(scale=2, channels=3, attention="acla"):
    options = {"in_channels": channels, "out_channels": channels, "num_keys": 2, "attention": attention}
    return search_spaces.edsr(scale, 2, 4, image_range=1.0, **options)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    space = small_space()
    return save_model(space.arch(SAMPLE), network_of(space).state_dict(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def grey_model(tmp_path_factory) -> Path:
    """A network for one channel that keeps the size."""
    space = small_space(1, 1)
    return save_model(space.arch(SAMPLE), network_of(space).state_dict(), tmp_path_factory.mktemp("grey"))


def noise(height, width, channels=3, dtype=np.uint8):
    shape = (height, width, channels)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# -- models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "torchscript", "python"])
def test_a_run_folder_and_an_exported_file_restore_alike(form, run_folder, tmp_path):
    model = export(run_folder / "arch.json", weights=run_folder / "weights.safetensors")
    arch = acla_nas.Arch.load(run_folder / "arch.json")
    files = formats.save(model, tmp_path, arch, SuperResolution(2), formats=[form])
    image = noise(70, 50)
    expected = Restorer(run_folder, tile=32)(image)
    restorer = Restorer(files[form].path, tile=32)
    assert np.abs(restorer(image).astype(int) - expected).max() <= 1
    known = "attention: equal to" if form == "safetensors" else "as example images needed"
    assert known in restorer.guarantee()


def test_tiles_are_equal_to_the_whole_however_far_attention_looks(run_folder, tmp_path):
    """Offsets of this network grow with contrast: example images need less than noise does."""
    space = small_space()
    network = network_of(space, spread=1.5)
    save_model(space.arch(SAMPLE), network.state_dict(), tmp_path)
    restorer = Restorer(tmp_path, tile=32)
    before, image = restorer.overlap, noise(120, 100, dtype=np.uint16)
    in_tiles = restorer(image)
    assert restorer.overlap > before, "a tile was restored again"
    at_once = restore_tiled(network, image, restorer.descriptor, tile=1000, overlap=0)
    assert np.abs(in_tiles.astype(int) - at_once).max() <= 1
    assert restorer.guarantee().endswith("for attention: equal to the whole image")
    assert f"overlap by {restorer.overlap} pixels" in restorer.guarantee()


def test_attention_that_looks_too_far_is_told(tmp_path):
    space = small_space()
    network = network_of(space)
    with torch.no_grad():
        for module in network.attention.values():
            for layer in module.references.values():
                layer.offset.weight.mul_(1e4)
    save_model(space.arch(SAMPLE), network.state_dict(), tmp_path)
    restorer = Restorer(tmp_path, tile=32)
    restorer(noise(40, 40))
    assert "more than tiles overlap (512): they may differ" in restorer.guarantee()


def test_a_network_that_sees_the_whole_image_is_blended(tmp_path):
    space = search_spaces.rcan(2, 2, 1, 8, 4, num_keys=2)
    save_model(space.arch(SAMPLE), network_of(space).state_dict(), tmp_path)
    restorer = Restorer(tmp_path, tile=32)
    assert restorer(noise(40, 70)).shape == (80, 140, 3)
    assert "every output pixel depends on the whole image" in restorer.guarantee()


def test_models_that_are_none(tmp_path):
    with pytest.raises(AclaError, match=r"has no arch\.json; give the run folder"):
        Restorer(tmp_path)
    with pytest.raises(AclaError, match="there is no such file or run folder"):
        Restorer(tmp_path / "absent")
    (tmp_path / "model.pth").touch()
    with pytest.raises(AclaError, match="it is no file with one of the suffixes"):
        Restorer(tmp_path / "model.pth")


def test_options_that_cannot_be(run_folder, tmp_path, monkeypatch):
    with pytest.raises(AclaError, match="tile must be above 0, not 0"):
        Restorer(run_folder, tile=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AclaError, match="PyTorch sees no GPU"):
        Restorer(run_folder, device="cuda")
    space = small_space(1)
    model, arch = network_of(space), space.arch(SAMPLE)
    files = formats.save(model, tmp_path, arch, Demosaicing(), formats=["safetensors"])
    with pytest.raises(AclaError, match="changes a mosaic's pattern"):
        Restorer(files["safetensors"].path, self_ensemble=True)


# -- arrays -------------------------------------------------------------------------------------------


def test_grey_by_a_network_for_colours(run_folder):
    grey = noise(20, 24, 1)
    restorer = Restorer(run_folder)
    expected = restorer(grey.repeat(3, 2)).astype(float).mean(2, keepdims=True)
    restored = restorer(grey)
    assert restored.shape == (40, 48, 1) and np.abs(restored - expected).max() <= 0.5
    assert (restorer(grey[..., 0]) == restored[..., 0]).all()


def test_colours_by_a_network_for_luma(grey_model):
    """The luma is what the network makes of it, and the differences between the colours stay."""
    colours = noise(30, 20) // 4 + 96
    restorer = Restorer(grey_model)
    restored = restorer(colours)
    luma_in = np.round(luma(colours)).astype(np.uint8)
    inside = ((restored > 0) & (restored < 255)).all(2)  # colours at an end of the range are cut off there
    assert inside.mean() > 0.2
    assert np.abs(luma(restored) - restorer(luma_in))[inside].max() <= 1.5
    shift = (restored.astype(int) - colours)[inside]
    assert np.ptp(shift, axis=1).max() <= 1 and np.abs(shift).max() > 1


def test_sixteen_bits_are_not_eight(run_folder):
    deep = noise(20, 20, 3, np.uint16)
    restorer = Restorer(run_folder)
    restored = restorer(deep)
    assert restored.dtype == np.uint16
    coarse = restorer((deep >> 8).astype(np.uint8))
    assert len(np.unique(restored)) > 256
    assert np.abs(restored / 65535 - coarse / 255).max() < 0.02


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros(3)]
)
def test_arrays_that_are_no_images(array, run_folder):
    with pytest.raises(AclaError, match="cannot restore"):
        Restorer(run_folder)(array)


# -- files --------------------------------------------------------------------------------------------


def test_a_file_keeps_what_it_had(run_folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    alpha = noise(20, 30, 1)[..., 0]
    layers = np.concatenate([noise(20, 30), alpha[..., None]], 2)
    Image.fromarray(layers).save(tmp_path / "in.png", exif=exif)
    [out] = restore(run_folder, tmp_path / "in.png", tmp_path / "out.png")
    picture = load_picture(out)
    assert picture.pixels.shape == (60, 40, 3) and picture.alpha.shape == (60, 40)
    turned = np.ascontiguousarray(np.rot90(layers, -1))
    assert (picture.pixels == Restorer(run_folder)(turned[..., :3])).all()
    assert np.abs(picture.alpha[::2, ::2].astype(int).mean() - alpha.mean()) < 3
    read = Image.open(out).getexif()
    assert read.get(0x0112, 1) == 1 and read[0x010F] == "a camera"


def test_a_folder(run_folder, tmp_path):
    source = tmp_path / "in"
    for name in ("a.jpg", "b.png", "c.webp"):
        Image.fromarray(noise(12, 16)).save(source / name if source.is_dir() else _made(source) / name)
    (source / "notes.txt").write_text("no image")
    written = restore(run_folder, source, tmp_path / "out")
    assert [path.name for path in written] == ["a.png", "b.png", "c.png"]
    assert all(load_picture(path).pixels.shape == (24, 32, 3) for path in written)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_damaged_image_in_a_folder_is_skipped(run_folder, tmp_path):
    Image.fromarray(noise(12, 16)).save(_made(tmp_path / "in") / "a.png")
    (tmp_path / "in" / "b.png").write_text("nothing")
    with pytest.warns(AclaWarning, match=r"not restored: cannot read image .*b\.png: not an image"):
        assert len(restore(run_folder, tmp_path / "in", tmp_path / "out")) == 1
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(AclaError, match="not an image"):
        restore(run_folder, tmp_path / "in", tmp_path / "out2")


def test_nothing_is_overwritten_silently(run_folder, tmp_path):
    image = tmp_path / "in.png"
    Image.fromarray(noise(12, 16)).save(image)
    kept = tmp_path / "out.png"
    kept.write_text("dear to me")
    with pytest.raises(AclaError, match=r"out\.png exists already: give another target, or let"):
        restore(run_folder, image, kept)
    assert restore(run_folder, image, kept, existing="skip") == []
    assert kept.read_text() == "dear to me"
    assert restore(run_folder, image, kept, existing="replace") == [kept]
    assert load_picture(kept).pixels.shape == (24, 32, 3)
    with pytest.raises(AclaError, match="is the image itself"):
        restore(run_folder, image, image, existing="replace")
    with pytest.raises(AclaError, match="existing must be"):
        restore(run_folder, image, kept, existing="overwrite")


def test_two_images_of_one_name(run_folder, tmp_path):
    for name in ("a.png", "a.bmp"):
        Image.fromarray(noise(6, 6)).save(tmp_path / name)
    with pytest.raises(AclaError, match=r"would both be written to .*out/a\.png: rename one"):
        restore(run_folder, tmp_path, tmp_path / "out")


def test_targets_that_cannot_be(run_folder, tmp_path):
    source = _made(tmp_path / "in")
    save_picture(Picture(noise(6, 6), noise(6, 6, 1)[..., 0]), source / "a.png")
    with pytest.raises(AclaError, match="is a folder, so the restored images need one"):
        restore(run_folder, source, tmp_path / "out.png")
    with pytest.raises(AclaError, match="there is no image or folder"):
        restore(run_folder, tmp_path / "absent.png", tmp_path / "out.png")
    with pytest.raises(AclaError, match="have no transparency; use"):
        restore(run_folder, source / "a.png", tmp_path / "out.jpg")
    with pytest.raises(AclaError, match=r"unknown suffix '\.gif'; use one of"):
        restore(run_folder, source / "a.png", tmp_path / "out.gif")
    assert not (tmp_path / "out.gif").exists()
    made = restore(run_folder, source / "a.png", f"{tmp_path}/results-1.0/")
    assert made == [tmp_path / "results-1.0" / "a.png"]
    assert restore(run_folder, source / "a.png", tmp_path / "made")[0] == tmp_path / "made" / "a.png"


MEASURED = """
import sys
from acla_nas.bench.memory import peak_bytes
from acla_nas.cli import main
sys.argv = ["acla-nas", "restore", *sys.argv[1:]]
main()
print(peak_bytes())  # its own: what getrusage says begins with the peak of the process that started it
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_measure(), reason="the system does not say a process's peak")
def test_a_large_image_in_bounded_memory(tmp_path):
    """4000 x 3000 pixels, twice as high and wide when restored: 144 MB of pixels alone."""
    space = search_spaces.edsr(2, 1, 4, num_keys=1, attention="cla")
    arch = space.arch({"insert/1": True, "keys": 1})
    run_folder = save_model(arch, export(arch).state_dict(), tmp_path / "run")
    image = np.tile(np.arange(250, dtype=np.uint8), (3000, 16))
    Image.fromarray(image).convert("RGB").save(tmp_path / "large.png", compress_level=1)
    arguments = [run_folder, tmp_path / "large.png", tmp_path / "out.png"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)], capture_output=True, text=True, timeout=560
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 3e9
    with Image.open(tmp_path / "out.png") as file:
        assert file.size == (8000, 6000)
    shutil.rmtree(tmp_path)
