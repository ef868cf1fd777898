"""acla-nas restore: what it prints, and one line for every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from acla_nas import export, search_spaces
from acla_nas.data import load_image, save_image
from acla_nas.exporter import save_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run folder with an untrained network, and in.png beside it."""
    space = search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)
    arch = space.arch({"insert/1": True, "insert/2": False, "keys": 2})
    save_image(np.zeros((20, 30, 3), dtype=np.uint8), tmp_path / "in.png")
    return save_model(arch, export(arch).state_dict(), tmp_path / "model")


def test_it_says_where_and_what_it_guarantees(model: Path, run: Run, tmp_path: Path) -> None:
    out_file = tmp_path / "out.png"
    code, out, err = run("restore", str(model), str(tmp_path / "in.png"), str(out_file))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"restored: {out_file}",
        "tiles overlap by 10 pixels, 8 for the receptive field and 2 for attention: equal to the whole image",
    ]
    assert load_image(out_file).shape == (40, 60, 3)


def test_json(model: Path, run: Run, tmp_path: Path) -> None:
    arguments = ["restore", str(model), str(tmp_path / "in.png"), str(tmp_path / "out"), "--json"]
    found = json.loads(run(*arguments)[1])
    assert found["files"] == [str(tmp_path / "out" / "in.png")]
    assert found["overlap"] == 10 and found["guarantee"].endswith("equal to the whole image")
    assert json.loads(run(*arguments, "--existing", "skip")[1]) == {"files": []}


def test_mistakes(model: Path, run: Run, tmp_path: Path) -> None:
    image = str(tmp_path / "in.png")
    for arguments, told in (
        ([str(model), image, image], "is the image itself"),
        ([str(model), str(tmp_path / "absent"), "out.png"], "there is no image or folder"),
        ([str(tmp_path), image, str(tmp_path / "out.png")], "has no arch.json; give the run folder"),
    ):
        code, out, err = run("restore", *arguments)
        assert code == 2 and not out
        assert err.startswith("acla-nas: error: ") and told in err and err.count("\n") == 1
