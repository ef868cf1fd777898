"""Other strategies, budgets and fronts on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFIG = str(Path(__file__).resolve().parents[2] / "examples" / "sr_edsr_search.yml")
TINY = [
    *("space.num_blocks=2", "space.num_channels=4", "space.num_keys=2", "data.patch_size=8"),
    *(
        "data.batch_size=2",
        "search.steps_per_epoch=1",
        "train.steps_per_epoch=1",
        "train.epochs=1",
        "device=cpu",
    ),
]


@pytest.fixture
def front(run, images, tmp_path):
    """The run folder of a search of all four architectures."""
    folder = tmp_path / "front"
    sources = [f"data.train={images}", f"data.validation={images}"]
    options = ["strategy.name=exhaustive", "strategy.cost=params", f"run={folder}"]
    code, out, err = run("search", CONFIG, *TINY, *sources, *options)
    assert (code, err) == (0, "")
    assert f"front: {folder}/front.md, {folder}/front.png\n" in out and "trial 4/4" in out
    return folder


def test_picks_from_a_front(run, front):
    code, out, _ = run("report", "front", str(front))
    assert code == 0 and out.count("\n| ") == 4 and not (front / "within_budget.json").exists()
    code, out, _ = run("report", "front", str(front), "--budget", "params<=0")
    assert code == 0 and "positions: none; quality " in out
    arch = json.loads((front / "within_budget.json").read_text())
    assert arch["positions"] == [] and arch["cost"] == {"parameters": 0.0}


def test_the_report_of_a_run(run, front, images, tmp_path, monkeypatch):
    """The command page may be left out; a run folder called like a command is ./NAME."""
    arguments = [f"data.test={images}", f"images=[{images}/a.png]"]
    code, out, err = run("report", str(front), *arguments)
    assert (code, out, err) == (0, f"report: {front}/report.html\n", "")
    monkeypatch.chdir(front.rename(tmp_path / "keys").parent)
    code, out, _ = run("report", "./keys", *arguments, "out=page.html")
    assert (code, out) == (0, "report: page.html\n") and "Search keys" in Path("page.html").read_text()
    code, _, err = run("report", "runs/none")
    assert code == 2 and "runs/none has no config.yml; give the run folder" in err
    code, out, _ = run("report", "--help")
    assert "RUN [KEY=VALUE]... | COMMAND" in out


def test_a_front_has_one_cost(run, front):
    code, _, err = run("report", "front", str(front), "--budget", "macs<=1e9")
    assert code == 2 and err.count("\n") == 1
    assert "is in MACs, the search in" in err and "measured parameters" in err


def test_no_front(run, tmp_path):
    code, _, err = run("report", "front", str(tmp_path))
    assert code == 2 and "give the folder of a multi-trial search" in err


def test_a_search_within_a_budget(run, images, tmp_path):
    sources = [f"data.train={images}", f"data.validation={images}", "strategy.initial_alpha=5"]
    options = ["strategy.epochs=[1,1]", "strategy.cost=params", f"run={tmp_path / 'run'}"]
    code, out, err = run("search", CONFIG, *TINY, *sources, *options, "--budget", "params<=100")
    assert (code, err) == (0, "")
    assert "cost: 0 parameters" not in out and "parameters" in out
    code, _, err = run("search", CONFIG, *TINY, *sources, *options, "--budget", "parms<=100")
    assert code == 2 and "unknown cost model 'parms'; did you mean 'params'" in err


def test_a_ranking_needs_a_supernet(run, tmp_path):
    code, _, err = run("bench", "ranking", CONFIG, *TINY, f"run={tmp_path}")
    assert code == 2 and "give scoring.weights=RUN_FOLDER" in err
