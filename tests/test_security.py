"""No file that is loaded has its code run: each attack ends in one line, and leaves no trace."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from acla_nas import export, formats, search_spaces
from acla_nas.cli import main
from acla_nas.data.image_sets import SETS, Archive, ImageSet, Part
from acla_nas.errors import AclaError
from acla_nas.exporter import read_weights, save_model

CONFIG = str(Path(__file__).resolve().parents[1] / "examples" / "sr_edsr_search.yml")


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What an attack leaves."""
    return tmp_path / "trace"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run folder with an untrained network."""
    space = search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)
    arch = space.arch({"insert/1": True, "insert/2": False, "keys": 2})
    return save_model(arch, export(arch).state_dict(), tmp_path / "model")


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trace: Path
) -> Callable[..., str]:
    """Run a command, which must end in one line and exit code 2 and leave no trace; return the line."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["acla-nas", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
        assert not trace.exists()
        return error

    return call


def test_the_attack_would_work(trace: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists()


@pytest.mark.parametrize("as_torch_file", [False, True])
def test_a_pickle_as_weights(refused: Any, model: Path, trace: Path, as_torch_file: bool) -> None:
    weights = model / "weights.safetensors"
    if as_torch_file:
        torch.save({"w": Malicious(trace)}, weights)
    else:
        weights.write_bytes(pickle.dumps(Malicious(trace)))
    assert "cannot read weights" in refused("eval", CONFIG, f"models=[{model}]")
    with pytest.raises(AclaError, match="cannot read weights"):
        read_weights(weights)
    assert not trace.exists()


@pytest.mark.parametrize("as_torch_file", [False, True])
def test_a_pickle_as_checkpoint(refused: Any, tmp_path: Path, trace: Path, as_torch_file: bool) -> None:
    (tmp_path / "run").mkdir()
    checkpoint = tmp_path / "run" / "training.ckpt"
    if as_torch_file:
        torch.save({"state_dict": Malicious(trace)}, checkpoint)
    else:
        checkpoint.write_bytes(pickle.dumps(Malicious(trace)))
    small = ["space.num_blocks=1", "space.num_channels=4", "train.steps_per_epoch=1", "data.batch_size=1"]
    error = refused("train", CONFIG, *small, f"run={tmp_path}/run", "device=cpu", "data.patch_size=8")
    assert "training.ckpt holds code (" in error if as_torch_file else "training.ckpt is damaged" in error


def test_a_yaml_tag(refused: Any, tmp_path: Path, trace: Path) -> None:
    tag = f"!!python/object/apply:os.system ['touch {trace}']"
    (tmp_path / "config.yml").write_text(f"run: {tag}\n")
    assert "is not plain YAML" in refused("search", str(tmp_path / "config.yml"))
    assert "is not YAML" in refused("search", CONFIG, f"run={tag}")
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "config.yml", tmp_path / "run" / "config.yml")  # of a run folder
    (tmp_path / "run" / "metrics.csv").write_text("epoch\n1\n")
    refused("report", str(tmp_path / "run"))


@pytest.mark.parametrize(
    "change",
    [
        {"space": {"name": "os:system", "options": {"command": "touch TRACE"}}},
        {"attention": {"name": "os:system", "num_keys": 2, "command": "touch TRACE"}},
    ],
)
def test_an_architecture_that_names_code(
    refused: Any, model: Path, tmp_path: Path, trace: Path, change: dict[str, Any]
) -> None:
    path = model / "arch.json"
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps(content).replace("TRACE", str(trace)))
    for command in (["eval", CONFIG, f"models=[{model}]"], ["train", CONFIG, f"arch={path}"]):
        error = refused(*command, f"run={tmp_path}/run")
        assert "'os:system'" in error and "must not decide what is imported" in error
    (model / "candidates.json").write_text(
        json.dumps([{"arch": json.loads(path.read_text()), "quality": 1, "cost": 1}])
    )
    refused("report", "front", str(model))


@pytest.mark.parametrize("where", ["sample inputs", "weights"])
def test_a_pickle_within_a_program(
    refused: Any, model: Path, tmp_path: Path, trace: Path, images: Path, where: str
) -> None:
    arch = model / "arch.json"
    network = export(arch, weights=model / "weights.safetensors")
    from acla_nas import Arch

    formats.save(network, tmp_path, Arch.load(arch), formats=["pt2"])
    formats.load(tmp_path / "model.pt2")
    evil = io.BytesIO()
    torch.save(Malicious(trace), evil)
    with zipfile.ZipFile(tmp_path / "model.pt2") as good, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as bad:
        for name in good.namelist():
            part = good.read(name)
            # Where PyTorch keeps the weights depends on its version.
            if (where == "sample inputs" and "sample_inputs" in name) or (
                where == "weights" and name.endswith(("weights/weight_0", "weights/model.pt"))
            ):
                part = evil.getvalue()
            elif where == "weights" and name.endswith("model_weights_config.json"):
                part = part.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            bad.writestr(name, part)
    with pytest.raises(AclaError, match=r"evil\.pt2 holds code in .*, and is not loaded"):
        formats.load(tmp_path / "evil.pt2")
    refused("restore", str(tmp_path / "evil.pt2"), str(images / "a.png"), str(tmp_path / "out.png"))


def _zip(name: str, *, link: bool = False) -> bytes:
    file, member = io.BytesIO(), zipfile.ZipInfo(name)
    if link:
        member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("HR/good.png", b"good")
        archive.writestr(member, b"/etc/passwd")
    return file.getvalue()


def _tar(name: str, *, link: bool = False) -> bytes:
    file, member = io.BytesIO(), tarfile.TarInfo(name)
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(member, io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (_zip("HR/../../trace"), "would be written outside"),
        (_zip("HR/..\\..\\trace"), "would be written outside"),
        (_zip("/tmp/trace"), "would be written outside"),
        (_zip("HR/a.png", link=True), "holds a link, 'HR/a.png'"),
        (_tar("../trace"), "would be written outside"),
        (_tar("/tmp/trace"), "would be written outside"),
        (_tar("HR/a.png", link=True), "holds a link or device, 'HR/a.png'"),
    ],
)
def test_an_archive_that_writes_elsewhere(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, told: str
) -> None:
    part = Part(Archive("http://nowhere.invalid/mine.archive", None, None), "HR", "Mine")
    monkeypatch.setitem(SETS, "mine", ImageSet("Mine", "all mine", "nowhere", (part,)))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "mine.archive").write_bytes(content)  # as it has been downloaded
    assert told in refused("data", "fetch", "mine", str(folder))
    assert not (folder / "Mine").exists() and not Path("/tmp/trace").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name == "trace" or path.is_symlink()]
