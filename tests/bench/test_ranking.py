"""Ranking: two scores of each architecture, kept as they come, and their correlation."""

from __future__ import annotations

from pathlib import Path

import pytest

from acla_nas import experiment
from acla_nas.bench.ranking import Ranked, Ranking, kendall_tau, ranking_table
from acla_nas.config import parse_config
from acla_nas.errors import AclaError


def config(images: Path, folder: Path, **more):
    return parse_config(
        {
            "space": {"name": "edsr", "num_blocks": 3, "num_channels": 4, "num_keys": 2},
            "strategy": {"name": "random_one_shot", "epochs": 1},
            "data": {"train": str(images), "validation": str(images), "patch_size": 8, "batch_size": 2},
            "search": {"steps_per_epoch": 2},
            "train": {"steps_per_epoch": 2},
            "device": "cpu",
            "run": str(folder),
            **more,
        },
        "test",
    )


def test_scores_and_goes_on(images: Path, tmp_path: Path) -> None:
    experiment.run_search(config(images, tmp_path / "supernet"))
    settings = config(images, tmp_path / "ranking", scoring={"weights": str(tmp_path / "supernet")})
    first = list(Ranking(settings, 3).run())
    assert len({row.positions for row in first}) == 3
    lines = (tmp_path / "ranking" / "ranking.jsonl").read_text().splitlines()
    assert len(lines) == 3
    again = Ranking(settings, 4)
    assert again.finished() == first
    assert list(again.run())[:3] == first
    # Each of the two scores is reproduced by itself.
    (tmp_path / "ranking" / "ranking.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert list(Ranking(settings, 3).run()) == first


def test_needs_a_supernet(images: Path, tmp_path: Path) -> None:
    with pytest.raises(AclaError, match=r"give scoring\.weights=RUN_FOLDER"):
        Ranking(config(images, tmp_path), 3)


def test_kendall_tau() -> None:
    rows = [Ranked((1,), 1.0, 5.0), Ranked((2,), 2.0, 4.0), Ranked((3,), 3.0, 6.0)]
    assert kendall_tau(rows)[0] == pytest.approx(1 / 3)
    assert "Kendall's tau of 3 architectures: 0.33" in ranking_table(rows)
