"""The table of a cross-validation of lambda: the folds that all lambdas share, the latest of each."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from acla_nas.config import load_config
from acla_nas.experiment import run_search

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def show() -> Callable[[str], int]:
    return runpy.run_path(str(ROOT / "examples" / "cross_validation.py"))["main"]


def trial(folder: Path, cost_weight: float, fold: int | None, psnr: float, positions: list[int]) -> None:
    folder.mkdir(parents=True)
    summary = {"positions": positions, "cost": {"MACs": 1000.0 * len(positions)}, "val_psnr": psnr}
    summary["strategy"] = {"cost_weight": cost_weight}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yml").write_text(yaml.safe_dump({"data": {"fold": fold}}))


def test_means_over_the_folds_that_are_finished_for_every_lambda(
    show: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial(tmp_path / "x" / "trial_0", 0.5, 1, 30.0, [1])
    trial(tmp_path / "x" / "trial_1", 0.5, 2, 32.0, [1, 2])
    trial(tmp_path / "x" / "trial_2", 0.05, 1, 31.0, [1, 2, 3])
    trial(tmp_path / "x" / "trial_3", 0.05, 2, 33.0, [1, 2, 3])
    trial(tmp_path / "x" / "trial_4", 0.5, 3, 99.0, [])
    trial(tmp_path / "no_fold", 0.1, None, 99.0, [])
    assert show(str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "means over folds 1, 2, which are finished for every lambda",
        "lambda  PSNR (dB)  spread  modules  cost",
        "0.05        32.00    1.41      3.0  3,000 MACs",
        "0.5         31.00    1.41      1.5  1,500 MACs",
    ]


def test_no_trials(show: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(str(tmp_path)) == 1
    assert capsys.readouterr().err == f"{tmp_path} holds no search with data.fold set\n"
    trial(tmp_path / "a", 0.5, 1, 30.0, [1])
    trial(tmp_path / "b", 0.1, 2, 30.0, [1])
    assert show(str(tmp_path)) == 1
    assert "no fold" in capsys.readouterr().err


def test_it_reads_what_a_search_writes(
    show: Callable[[str], int], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        *("space.num_blocks=2", "space.num_channels=4", "space.num_keys=2", "strategy.epochs=[1,1]"),
        *("search.steps_per_epoch=1", "data.batch_size=1", "data.patch_size=8", "device=cpu"),
        *(f"data.train={images}", "data.validation=/nowhere", "data.folds=3"),
    ]
    for fold in (1, 3):
        run = tmp_path / f"trial_{fold}"
        overrides = [*settings, f"data.fold={fold}", f"run={run}"]
        run_search(load_config(ROOT / "examples" / "sr_edsr_search.yml", overrides))
    capsys.readouterr()
    assert show(str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("means over folds 1, 3,") and lines[2].startswith("0.3 ") and len(lines) == 3
