"""A run folder keeps what it holds: no run is written over one that was made otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from acla_nas.bench.compare import Comparison
from acla_nas.bench.ranking import Ranking
from acla_nas.bench.strategies import compare_strategies
from acla_nas.config import Config, parse_config
from acla_nas.errors import AclaError
from acla_nas.experiment import run_search, run_training
from acla_nas.run_folder import check_run_folder


def tiny(images: Path, run: Path, **changes: Any) -> Config:
    content = {
        "space": {"name": "edsr", "num_blocks": 2, "num_channels": 4, "num_keys": 2},
        "strategy": {"name": "two_stage", "epochs": [0, 1], "cost": "params"},
        "data": {"patch_size": 8, "batch_size": 2},
        "search": {"steps_per_epoch": 1},
        "train": {"epochs": 1, "steps_per_epoch": 1},
        "arch": "bare",
        "device": "cpu",
        "run": str(run),
    }
    content["data"] |= {split: str(images) for split in ("train", "validation", "test")}
    return parse_config({**content, **changes}, "test")


TPE = {"name": "tpe", "trials": 1, "cost": "params"}


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a finished search, trials and training."""
    folder = tmp_path_factory.mktemp("runs")
    run_search(tiny(images, folder / "search"))
    run_search(tiny(images, folder / "trials", strategy=TPE))
    run_training(tiny(images, folder / "training"))
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("of", "run", "changes", "message"),
    [
        ("search", run_training, {}, "holds a search, which a training would overwrite; set run=DIR"),
        ("training", run_search, {}, "holds a training, which a search would overwrite; set run=DIR"),
        ("search", run_search, {"seed": 1}, "holds a search with another seed: set run=DIR, or remove"),
        ("search", run_search, {"budget": "params<=9"}, "holds a search with another budget"),
        ("search", run_search, {"strategy": TPE}, "holds a search with another strategy"),
        ("trials", run_search, {}, "holds a search with another strategy"),
        ("trials", run_search, {"strategy": TPE, "seed": 1}, "holds a search with another seed"),
        ("trials", run_search, {"strategy": {**TPE, "cost": "macs"}}, "holds a search with another strategy"),
        ("training", run_training, {"arch": "{search}"}, "holds a training with another arch"),
        ("search", run_search, {"budget": "flops<=100"}, "flops"),
        ("search", run_search, {"budget": "macs"}, "macs"),
    ],
)
def test_refused_runs_leave_everything_as_it_was(
    of: str, run: Any, changes: Any, message: str, runs: Path, images: Path
) -> None:
    if "arch" in changes:
        changes = {"arch": str(runs / "search" / "arch.json")}
    before = contents(runs / of)
    with pytest.raises(AclaError, match=message):
        run(tiny(images, runs / of, **changes))
    assert contents(runs / of) == before


@pytest.mark.parametrize(
    ("of", "run", "file", "message"),
    [
        ("search", run_training, "search.previous.ckpt", "holds a search"),
        ("training", run_search, "training.ckpt", "holds a training"),
    ],
)
def test_unfinished_runs_of_another_kind(
    of: str, run: Any, file: str, message: str, runs: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copy(runs / of / "config.yml", tmp_path)
    (tmp_path / file).touch()
    with pytest.raises(AclaError, match=message):
        run(tiny(images, tmp_path))


BENCHMARKS = {
    "comparison": lambda config: Comparison(config),
    "ranking": lambda config: list(Ranking(config, 2).run()),
    "comparison of strategies": lambda config: list(compare_strategies(config, ["tpe"], [0])),
}


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_benchmarks_keep_off_other_runs(kind: str, runs: Path, images: Path) -> None:
    changes = {"scoring": {"weights": str(runs / "search")}, "compare": {"num_modules": 1}}
    config = tiny(images, runs / "training", **changes)
    before = contents(runs / "training")
    with pytest.raises(AclaError, match=f"holds a training, which a {kind} would overwrite"):
        BENCHMARKS[kind](config)
    assert contents(runs / "training") == before


@pytest.mark.parametrize("kind", ["ranking", "comparison of strategies"])
def test_lines_of_other_settings_are_not_mixed(kind: str, images: Path, tmp_path: Path) -> None:
    config = tiny(images, tmp_path)
    config.save(tmp_path)
    (tmp_path / {"ranking": "ranking.jsonl"}.get(kind, "strategies.jsonl")).touch()
    check_run_folder(config, kind)
    with pytest.raises(AclaError, match=f"holds a {kind} with another train"):
        check_run_folder(tiny(images, tmp_path, train={"epochs": 2}), kind)


@pytest.mark.parametrize("storage", [None, "sqlite:///{}/shared.db"])
def test_a_finished_search_may_have_more_trials(storage: str | None, images: Path, tmp_path: Path) -> None:
    options = {} if storage is None else {"storage": storage.format(tmp_path)}
    for trials in (1, 2):
        strategy = {**TPE, "trials": trials, **options}
        assert len(run_search(tiny(images, tmp_path / "run", strategy=strategy)).history) == trials


def test_what_a_run_does_not_depend_on_may_change(runs: Path, images: Path) -> None:
    run_search(tiny(images, runs / "search", time_limit=60, device="auto", train={"epochs": 9}))
    run_training(tiny(images, runs / "training", strategy=TPE, budget="macs<=1"))
