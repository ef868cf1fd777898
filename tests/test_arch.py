"""Arch: an architecture as data, its JSON file, and the errors of reading one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from acla_nas import Arch, export, search_spaces
from acla_nas.attention import default_options
from acla_nas.errors import AclaError

GOLDEN = Path(__file__).parent / "golden" / "arch_v1.json"


def make_arch():
    space = search_spaces.edsr(2, 3, num_channels=8, num_keys=[2, 4], shared_mask=True)
    return space.arch({"insert/1": True, "insert/2": False, "insert/3": True, "keys": 4})


def as_dict(**changes):
    return {**json.loads(make_arch().model_dump_json()), **changes}


def test_of_a_sample():
    arch = make_arch()
    assert arch.positions == (1, 3)
    assert arch.paths == {1: "body.0", 3: "body.2"}
    options = {**default_options("acla"), "shared_mask": True}
    assert arch.attention == {"name": "acla", "num_keys": 4, **options}
    assert arch.space["name"] == "edsr"
    # Defaults too, so that the file means the same when they change.
    given = {"scale": 2, "num_blocks": 3, "num_channels": 8}
    assert {**given, "image_range": 255.0}.items() <= arch.space["options"].items()
    assert arch.input_shape == (3, 48, 48)
    assert arch.provenance["acla_nas"]


def test_json_round_trip(tmp_path):
    arch = make_arch().model_copy(update={"cost": {"macs": 1.5e9}, "provenance": {"seed": 3}})
    path = arch.save(tmp_path / "new" / "folder" / "arch.json")
    assert path.is_file()
    loaded = Arch.load(path)
    assert loaded == arch
    assert Arch.load(str(path)) == arch
    assert loaded.paths == {1: "body.0", 3: "body.2"}
    assert json.loads(path.read_text())["format_version"] == 2


def test_load_takes_a_dict_and_an_arch():
    arch = make_arch()
    assert Arch.load(arch) is arch
    assert Arch.load(as_dict()) == arch
    assert Arch.load(arch.model_dump()) == arch


def test_nothing_inserted_round_trips(tmp_path):
    space = search_spaces.edsr(2, 2, num_channels=8)
    arch = space.arch({"insert/1": False, "insert/2": False, "keys": 16})
    assert arch.positions == ()
    assert Arch.load(arch.save(tmp_path / "arch.json")) == arch


def test_golden_file_of_version_1_keeps_loading():
    arch = Arch.load(GOLDEN)
    assert arch.positions == (1, 3)
    assert arch.paths == {1: "body.0", 3: "body.2"}
    gates = {"gate_bias": 0.5, "gate_noise": True, "zero_masks": False, "mask_scale": 1.0}  # its defaults
    assert arch.attention == {"name": "acla", "num_keys": 4, **gates}
    assert arch.cost == {"macs": 1234567.0}
    model = export(GOLDEN).eval()
    assert {j: list(a.references) for j, a in model.attention.items()} == {"1": ["1"], "3": ["1", "3"]}
    bare = sum(p.numel() for p in model.backbone.parameters())
    pair = 8 * 8 + 8 * 4 * 4  # G; W_off, W_att and M
    assert sum(p.numel() for p in model.parameters()) == bare + 2 * 8 * 8 + 3 * pair
    assert model(torch.rand(1, 3, 6, 7)).shape == (1, 3, 12, 14)


def test_golden_file_of_version_2_keeps_loading():
    path = GOLDEN.with_name("arch_v2.json")
    arch = Arch.load(path)
    assert arch.layouts == {"body.0": "bchw", "body.2": "bchw"} and arch.positions == (1, 3)
    assert json.loads(arch.model_dump_json()) == json.loads(path.read_text())
    module = export(path).attention["3"]
    assert (module.gate_bias, module.gate_noise, module.num_keys) == (0.5, False, 4)
    assert module.references["1"].mask_scale == 0.25


def test_a_file_holds_every_option_of_the_attention():
    attention = make_arch().attention
    assert set(default_options(attention["name"])) < set(attention)


def test_an_arch_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        make_arch().positions = (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, r"format version 3, this acla_nas .* reads 1 and 2"),
        ({"format_version": None}, r"format version None"),
        ({"format": "onnx"}, "is not an acla_nas architecture"),
        ({"colour": "red"}, r"not valid: colour .*not permitted"),
        ({"positions": "all"}, r"not valid: positions"),
        ({"positions": [3, 1]}, r"ascending and at least 1, not \(3, 1\)"),
        ({"positions": [1, 1, 3]}, "different, ascending"),
        ({"positions": [0, 1]}, "at least 1"),
        ({"positions": [1, 2]}, r"paths must name the positions \(1, 2\), not \[1, 3\]"),
        ({"paths": {"1": "body.0"}}, r"paths must name the positions \(1, 3\), not \[1\]"),
        ({"attention": {"name": "acla"}}, "attention must have a name and num_keys"),
        ({"attention": {"num_keys": 4}}, "attention must have a name and num_keys"),
        ({"cost": {"macs": "many"}}, r"not valid: cost.macs"),
    ],
)
def test_wrong_content(changes, message, tmp_path):
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(as_dict(**changes)))
    for source in (path, as_dict(**changes)):
        with pytest.raises(AclaError, match=message) as error:
            Arch.load(source)
        assert "\n" not in str(error.value)
        assert ("arch.json" if source is path else "the architecture") in str(error.value)


@pytest.mark.parametrize("field", ["space", "positions", "paths", "attention"])
def test_a_missing_field(field):
    data = as_dict()
    del data[field]
    with pytest.raises(AclaError, match=f"{field} Field required"):
        Arch.load(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{positions", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "is not an acla_nas arch"),
    ],
)
def test_files_that_are_not_an_architecture(content, message, tmp_path):
    path = tmp_path / "arch.json"
    path.write_bytes(content)
    with pytest.raises(AclaError, match=message) as error:
        Arch.load(path)
    assert "give the arch.json of a search" in str(error.value)


def test_a_file_that_is_absent_and_a_folder(tmp_path):
    with pytest.raises(AclaError, match=r"absent.json: No such file .*give the arch.json"):
        Arch.load(tmp_path / "absent.json")
    with pytest.raises(AclaError, match="Is a directory"):
        Arch.load(tmp_path)
