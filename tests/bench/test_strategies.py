"""Strategies at equal wall time: the first sets the time, the others fill it with trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from acla_nas.bench.strategies import Found, compare_strategies, strategies_table
from acla_nas.config import parse_config
from acla_nas.errors import AclaError


def config(images: Path, folder: Path):
    return parse_config(
        {
            "space": {"name": "edsr", "num_blocks": 2, "num_channels": 4, "num_keys": 2},
            "strategy": {"name": "two_stage", "epochs": [1, 1], "cost": "params"},
            "data": {
                "train": str(images),
                "validation": str(images),
                "test": str(images),
                "patch_size": 8,
                "batch_size": 2,
            },
            "search": {"steps_per_epoch": 2},
            "train": {"steps_per_epoch": 2},
            "device": "cpu",
            "run": str(folder),
        },
        "test",
    )


def test_compares_and_goes_on(images: Path, tmp_path: Path) -> None:
    rows = list(compare_strategies(config(images, tmp_path), ["random"], [0]))
    assert [row.strategy for row in rows] == ["two_stage", "random"]
    assert rows[0].scored == 0 < rows[1].scored
    assert {row.unit for row in rows} == {"parameters"}
    assert list(compare_strategies(config(images, tmp_path), ["random"], [0])) == rows
    assert len((tmp_path / "strategies.jsonl").read_text().splitlines()) == 2


def test_the_others_must_have_trials(images: Path, tmp_path: Path) -> None:
    with pytest.raises(AclaError, match="'darts' has no trials to fill the time with"):
        list(compare_strategies(config(images, tmp_path), ["darts"], [0]))


def test_table() -> None:
    rows = [Found("tpe", seed, 1.0, 5, (1,), 10.0, "MACs", 31.0 + seed) for seed in (0, 1)]
    assert strategies_table(rows).splitlines()[2] == "| tpe | 2 | 1.0 | 5 | 1; 1 | 10 MACs | 31.500 ± 0.707 |"
