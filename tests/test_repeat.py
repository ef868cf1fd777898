"""A run folder is enough to repeat its run, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_experiment import tiny
from test_kill import same

from acla_nas import experiment, search_spaces
from acla_nas.cli import cli
from acla_nas.config import Named


def command(*arguments: object) -> None:
    CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


def moved(run: Path) -> Path:
    """Return the folder, elsewhere, with nothing left where it was."""
    return Path(shutil.move(run, run.parent / "elsewhere"))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 3, "budget": "params<=1e9"},
        {"strategy": Named(name="tpe", trials=3, cost="params")},
        {"deterministic": True},
    ],
    ids=["two_stage", "tpe", "deterministic"],
)
def test_a_search(changes: dict[str, Any], images: Path, tmp_path: Path) -> None:
    config = tiny(images, tmp_path / "run").model_copy(update=changes)
    experiment.run_search(config)
    run = moved(tmp_path / "run")
    command("search", run / "config.yml", f"run={tmp_path / 'again'}")
    same(tmp_path / "again", run)


@pytest.mark.parametrize("arch", ["bare", "searched"])
def test_a_training(arch: str, images: Path, tmp_path: Path) -> None:
    """What it trained is in the folder too."""
    path = tmp_path / "gone" / "arch.json"
    if arch != "bare":
        space = search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)
        space.arch({"insert/1": False, "insert/2": True, "keys": 2}).save(path)
    experiment.run_training(tiny(images, tmp_path / "run", arch="bare" if arch == "bare" else str(path)))
    shutil.rmtree(path.parent, ignore_errors=True)
    run = moved(tmp_path / "run")
    command("train", run / "config.yml", f"arch={run / 'arch.json'}", f"run={tmp_path / 'again'}")
    same(tmp_path / "again", run)
    assert json.loads((run / "scores.json").read_text()) == json.loads(
        (tmp_path / "again" / "scores.json").read_text()
    )
