"""Exported files: equal to the network in every format, of our spaces and of a network from elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from random_weights import randomize
from torch import nn

from acla_nas import CrossLayerSpace, export, formats, search_spaces
from acla_nas.attention.open_keys import open_key_shares
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.formats import Descriptor, safetensors_file
from acla_nas.network import CrossLayerNetwork
from acla_nas.tasks import Denoising, SuperResolution

SIZES = ((48, 48), (64, 40), (127, 93))
SAMPLE = {"insert/1": True, "insert/2": False, "insert/3": True, "keys": 4}


def third_party():
    rcan = pytest.importorskip("resselt.archs.rcan.arch").RCAN
    return rcan(scale=2, n_resgroups=3, n_resblocks=1, n_feats=8, reduction=4, rgb_range=1)


# Gates of which about half are closed, on features small enough that rounding decides none.
GATES = {"num_keys": 4, "gate_bias": 0.0, "mask_scale": 1.0}
SPACES = {
    "edsr": lambda: search_spaces.edsr(2, 3, 8, image_range=1.0, **GATES),
    "rcan": lambda: search_spaces.rcan(2, 3, 1, 8, 4, image_range=1.0, **GATES),
    "third_party": lambda: CrossLayerSpace(third_party, "body.[0-2]", **GATES),
}


def derived(space, sample=SAMPLE, spread=0.3):
    """The derived network with attention that does something."""
    network = space.freeze(sample).eval()
    randomize(network.attention, spread)
    return network


def backbone_of(name):
    return third_party if name == "third_party" else None


SLOW = [("rcan", "pt2"), ("rcan", "onnx"), ("third_party", "pt2"), ("third_party", "onnx")]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=[pytest.mark.slow] if (name, form) in SLOW else [])
        for name in SPACES
        for form in formats.FORMATS
    ],
)
def test_every_format_gives_what_the_network_gives(name, form, tmp_path):
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    space = SPACES[name]()
    network, arch = derived(space), space.arch(SAMPLE)
    backbone = backbone_of(name)
    task = SuperResolution(2)
    files = formats.save(network, tmp_path, arch, task, formats=[form], backbone=backbone)
    assert list(files) == [form]
    assert files[form].difference <= 1e-5 and not files[form].undecided
    loaded, descriptor = formats.load(files[form].path, backbone=backbone)
    for size in SIZES:
        # A gate that is on its threshold but for rounding may fall either way: few pixels of an image depend
        # on such, and of one of three images none.
        for image in torch.rand(3, 2, 3, *size):
            with torch.no_grad(), open_key_shares() as open_keys:
                expected = network(image)
            assert 0.2 < min(open_keys) < 0.8, "gates of both kinds"
            with torch.no_grad():
                actual, bare = loaded(image), network.backbone(image)
            assert not torch.allclose(expected, bare, atol=1e-3), "attention must matter to what is compared"
            assert actual.shape == expected.shape
            beyond = ~((actual - expected).abs() <= 1e-5)
            assert beyond.float().mean() <= 0.01
            if not beyond.any():
                break
        else:
            pytest.fail(f"no image of {size} gives the same")
    if form == "onnx":  # of its operators one reads keys; sums of rows would be a loop
        onnx = pytest.importorskip("onnx")
        operators = {node.op_type for node in onnx.load(files[form].path).graph.node}
        assert "GridSample" in operators and not operators & {"Loop", "Scan"}
    assert descriptor.arch == arch
    assert (descriptor.scale, descriptor.in_channels, descriptor.out_channels) == (2, 3, 3)
    assert descriptor.task == {"name": "super_resolution", "scale": 2}
    assert Descriptor.parse((tmp_path / "descriptor.json").read_text(), tmp_path) == descriptor


ALONE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"acla_nas", "nni", "pytorch_lightning", "scipy", "resselt"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
import torch
from model import DESCRIPTOR, build, load

network = load()
image, expected = torch.load("pair.pt")
with torch.no_grad():
    assert (network(image) - expected).abs().max() <= 1e-5
assert DESCRIPTOR["scale"] == 2

fresh = build().train()
optimizer = torch.optim.Adam(fresh.parameters(), 1e-3)
losses = []
for _ in range(8):
    loss = (fresh(image) - expected).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    assert all(p.grad is not None for p in fresh.parameters() if p.requires_grad)
    optimizer.step()
    losses.append(float(loss.detach()))
assert losses[-1] < losses[0], losses
"""


@pytest.mark.parametrize("name", SPACES)
def test_model_py_needs_pytorch_alone_and_trains(name, tmp_path):
    space = SPACES[name]()
    network = derived(space)
    formats.save(network, tmp_path, space.arch(SAMPLE), formats=["python"], backbone=backbone_of(name))
    image = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        torch.save((image, network(image)), tmp_path / "pair.pt")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env
    )
    assert run.returncode == 0, run.stderr


def test_model_py_reads_well(tmp_path):
    space = SPACES["edsr"]()
    formats.save(derived(space), tmp_path, space.arch(SAMPLE), formats=["python"])
    text = (tmp_path / "model.py").read_text()
    assert "backbone = EDSR(num_blocks=3, num_channels=8, image_range=1.0)\n" in text
    options = "gate_bias=0.0, mask_scale=1.0"
    assert f"'3': ACLA(channels=8, num_keys=4, reference_channels={{'1': 8, '3': 8}}, {options}),\n" in text
    assert "{'1': 'body.0', '3': 'body.2'}" in text
    assert "acla_nas (Apache-2.0)" in text
    for left_out in ("def select", "def macs", "scipy", "numpy", "import acla_nas"):
        assert left_out not in text, left_out
    assert len(text.splitlines()) < 800


def test_model_py_of_attention_of_several_kinds(tmp_path):
    space = search_spaces.edsr(2, 2, 16, image_range=1.0, attention="acla+se+clnl", num_keys=2)
    sample = {"insert/1": True, "insert/2": True, "keys": 2}
    files = formats.save(derived(space, sample), tmp_path, space.arch(sample), formats=["python"])
    text = files["python"].path.read_text()
    assert "class _Reference(nn.Module)" in text and "class _Reference2(nn.Module)" in text
    assert "Combined(parts=[ACLA(" in text


class Stem(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)


def plain_layers():
    layers = [nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1, bias=i != 1) for i in range(3)]
    return nn.Sequential(Stem(*layers), nn.LeakyReLU(0.1), nn.Conv2d(4, 3, 3, padding=1))


def test_model_py_of_a_network_that_is_a_list_of_layers(tmp_path):
    space = CrossLayerSpace(plain_layers, "0.*", num_keys=4)
    files = formats.save(
        derived(space), tmp_path, space.arch(SAMPLE), Denoising(30), formats=["python"], backbone=plain_layers
    )
    _, descriptor = formats.load(files["python"].path)
    assert descriptor.task == {"name": "denoising", "sigma": 30.0, "quantized": False}
    assert "Conv2d(in_channels=4, out_channels=4, kernel_size=3, padding=1, bias=False)" in (
        files["python"].path.read_text()
    )


# -- what cannot be written ---------------------------------------------------------------------------


def test_a_network_given_as_a_backbone_has_no_known_arguments(tmp_path):
    space = CrossLayerSpace(plain_layers(), "0.*", num_keys=4)
    with pytest.raises(AclaError, match=r"model\.py cannot be written: .*give what makes the backbone"):
        formats.save(
            derived(space), tmp_path, space.arch(SAMPLE), formats=["python"], backbone=plain_layers()
        )
    assert not (tmp_path / "model.py").exists()


def swinir():
    arch = pytest.importorskip("resselt.archs.swinir.arch")
    return arch.SwinIR(
        img_size=16, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, upscale=2,
        upsampler="pixelshuffledirect",
    )  # fmt: skip


@pytest.mark.slow
def test_what_a_network_does_not_fit_is_warned_of_and_the_rest_is_written(tmp_path, monkeypatch):
    """Windows fix the sizes of programs, and features that are tokens have no model.py."""
    monkeypatch.delitem(formats.FORMATS, "onnx")  # fails as pt2 does, and takes longer
    space = CrossLayerSpace(swinir, "layers.*", num_keys=2, input_shape=(3, 16, 16))
    sample = {"insert/1": True, "keys": 2}
    network, arch = derived(space, sample), space.arch(sample)
    with pytest.warns(AclaWarning) as warned:
        files = formats.save(network, tmp_path, arch, backbone=swinir)
    told = " ".join(str(w.message) for w in warned)
    assert "safetensors" in files and "python" not in files
    assert "not exported as python: model.py is for networks with feature maps" in told
    assert {path.name for path in tmp_path.iterdir()} == {
        "descriptor.json",
        *(f.path.name for f in files.values()),
    }
    with pytest.raises(AclaError, match=r"'layers\.0' returns 'bnc': use one of the other formats"):
        formats.save(network, tmp_path, arch, formats=["python"], backbone=swinir)


class Wrong(nn.Module):
    """Adds something to what a network returns, at some of its rows."""

    def __init__(self, network, rows):
        super().__init__()
        self.network, self.rows = network, rows

    def forward(self, x):
        y = self.network(x).clone()
        y[..., : int(self.rows * y.shape[2]), :] += 1e-3
        return y


@pytest.mark.parametrize(
    ("attention", "rows", "told"),
    [
        ("cla", 1.0, "at 100.0 %"),
        ("acla", 0.05, r"at [45]\.\d %"),
        ("cla", 0.02, r"at \d\.\d %"),
        ("acla", 0.02, ""),
    ],
)
def test_a_file_that_gives_something_else_is_removed(attention, rows, told, tmp_path, monkeypatch):
    """Only where there are gates, and only at a few pixels, may rounding be what makes the difference."""
    space = search_spaces.edsr(2, 3, 8, attention=attention, num_keys=4)
    read = safetensors_file.read

    def wrong(path, backbone=None):
        loaded, descriptor = read(path)
        return Wrong(loaded, rows / 2 if not told else rows), descriptor

    monkeypatch.setattr(safetensors_file, "read", wrong)
    sample, path = SAMPLE, tmp_path / "model.safetensors"
    if told:
        with pytest.raises(AclaError, match=f"another output than the network, {told} of the pixels"):
            formats.save(derived(space, sample), tmp_path, space.arch(sample), formats=["safetensors"])
        assert not path.exists()
    else:
        files = formats.save(derived(space, sample), tmp_path, space.arch(sample), formats=["safetensors"])
        assert 0 < files["safetensors"].undecided <= 0.01


def test_unknown_formats_and_files(tmp_path):
    space = SPACES["edsr"]()
    with pytest.raises(AclaError, match="unknown format 'onxx'; did you mean 'onnx'"):
        formats.save(derived(space), tmp_path, space.arch(SAMPLE), formats=["onxx"])
    with pytest.raises(AclaError, match="there is no such file or run folder"):
        formats.load(tmp_path / "model.pt2")
    (tmp_path / "model.pkl").touch()
    with pytest.raises(AclaError, match="it is no file with one of the suffixes"):
        formats.load(tmp_path / "model.pkl")
    for code in ("x = 1", "def load(:", "raise SystemExit", "open('absent.pth')"):
        (tmp_path / "other.py").write_text(code)
        with pytest.raises(AclaError, match=r"cannot run .*other\.py .*give a file that acla-nas export"):
            formats.load(tmp_path / "other.py")
    for suffix in ("pt2", "ts", "onnx", "safetensors"):
        broken = tmp_path / f"broken.{suffix}"
        broken.write_bytes(b"nothing of the kind")
        with pytest.raises(AclaError, match=f"cannot read .*broken.{suffix}"):
            formats.load(broken)


def test_files_of_others_carry_no_descriptor(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 4, 4)), tmp_path / "other.ts")
    with pytest.raises(AclaError, match=r"other\.ts carries no descriptor of acla_nas"):
        formats.load(tmp_path / "other.ts")


# -- the descriptor -----------------------------------------------------------------------------------


class Halving(nn.Module):
    """Takes even sizes only; cuts what is left over."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 4, 2, stride=2), nn.ConvTranspose2d(4, 1, 2, stride=2)

    def forward(self, x):
        return self.up(self.down(x))


def test_sizes_are_measured():
    network = CrossLayerNetwork.dense(Halving(), {1: "down"}, "cla", num_keys=2, input_shape=(1, 16, 16))
    space = CrossLayerSpace(Halving, ["down"], num_keys=2, input_shape=(1, 16, 16), attention="cla")
    arch = space.arch({"insert/1": True, "keys": 2})
    descriptor = formats.describe(network.eval(), arch)
    assert (descriptor.scale, descriptor.in_channels, descriptor.out_channels) == (1, 1, 1)
    assert (descriptor.multiple_of, descriptor.minimum_size) == (2, 2)
    assert descriptor.valid_size(1, 47) == (2, 48)


def test_a_network_of_one_size_is_refused():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            assert x.shape[-2:] == (24, 24)
            return self.conv(x)

    space = CrossLayerSpace(Fixed, ["conv"], num_keys=2, input_shape=(3, 24, 24), layout="bchw")
    arch = space.arch({"insert/1": True, "keys": 2})
    with pytest.raises(AclaError, match="takes none of the input sizes"):
        formats.describe(export(arch, backbone=Fixed), arch)


def test_training_and_versions_are_told(tmp_path):
    space = SPACES["edsr"]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        formats.save(
            derived(space), tmp_path, space.arch(SAMPLE), formats=["safetensors"], training={"epochs": 3}
        )
    content = json.loads((tmp_path / "descriptor.json").read_text())
    assert content["training"] == {"epochs": 3}
    assert content["arch"]["positions"] == [1, 3]
    assert content["parameters"] == sum(p.numel() for p in derived(space).parameters() if p.requires_grad)
    with pytest.raises(AclaError, match=r"cannot be read by acla_nas .*: scale .*export it again"):
        Descriptor.parse(json.dumps({**content, "scale": 0}), Path("descriptor.json"))
