"""acla-nas data: what it prints, its exit codes, and JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from acla_nas.data.image_sets import SETS

Run = Callable[..., tuple[int, str, str]]


def test_check(run: Run, images: Path, tmp_path: Path) -> None:
    code, out, err = run("data", "check", str(images))
    assert (code, err) == (0, "")
    assert out == f"{images}: 3 images, 40x48 (3)\nnone is damaged, none is there twice\n"
    shutil.copytree(images, tmp_path / "test")
    code, out, err = run("data", "check", str(images), "--against", str(tmp_path / "test"))
    assert (code, err) == (1, "") and out.count("in both: ") == 3
    code, out, _ = run("data", "check", str(images), "--against", str(tmp_path / "test"), "--json")
    assert json.loads(out)["other"] == str(tmp_path / "test")
    assert code == 1 and len(json.loads(out)["against"]) == 3


def test_fetch_lists_the_sets_with_their_licences(run: Run) -> None:
    code, out, err = run("data", "fetch")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(SETS)
    assert out.count("licence: ") == len(SETS)
    code, _, err = run("data", "fetch", "set55")
    assert code == 2 and "unknown image set 'set55'; did you mean 'set5'" in err


def test_lr(run: Run, images: Path, tmp_path: Path) -> None:
    code, out, err = run("data", "lr", str(images), str(tmp_path / "X4"), "--scale", "4")
    assert (code, err) == (0, "")
    assert out == f"written: 3 images to {tmp_path}/X4\n"
    assert sorted(path.name for path in (tmp_path / "X4").iterdir()) == ["ax4.png", "bx4.png", "cx4.png"]
    code, _, err = run("data", "lr", str(images), str(tmp_path / "X4"), "--scale", "4")
    assert code == 2 and "exists already" in err
