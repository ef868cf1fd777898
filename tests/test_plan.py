"""What a search would do: worked out, and nothing done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

import acla_nas
from acla_nas.config import parse_config
from acla_nas.errors import AclaError
from acla_nas.experiment import make_space
from acla_nas.plan import plan_search


def config(images, run, **sections):
    data = {split: str(images) for split in ("train", "validation", "test")}
    content = {
        "space": {"name": "edsr", "num_blocks": 3, "num_channels": 4, "num_keys": [2, 4]},
        "strategy": {"name": "two_stage", "epochs": [1, 2], "cost": "params"},
        "data": {**data, "patch_size": 8, "batch_size": 2},
        "search": {"steps_per_epoch": 5},
        "device": "cpu",
        "run": str(run),
    }
    return parse_config({**content, **sections}, "test")


def test_the_plan_is_of_this_space_and_this_search(images, tmp_path):
    chosen = config(images, tmp_path / "run")
    plan = plan_search(chosen)
    space = acla_nas.search_spaces.edsr(num_blocks=3, num_channels=4, num_keys=[2, 4])
    everything = {"insert/1": True, "insert/2": True, "insert/3": True, "keys": 4}
    count = sum(p.numel() for p in acla_nas.export(space.arch(everything)).parameters())
    modules = sum(p.numel() for p in space.network.attention.parameters())
    assert plan.parameters == {"bare": count - modules, "supernet": count}
    assert (plan.cost.unit, plan.cost.nothing, plan.cost.everything) == ("parameters", 0, modules)
    smallest = acla_nas.export(space.arch({**dict.fromkeys(everything, False), "insert/1": True, "keys": 2}))
    assert plan.cost.cheapest == sum(p.numel() for p in smallest.attention.parameters())
    assert plan.architectures == 16 and plan.images == {"train": 3, "validation": 3}
    assert plan.work == {
        **{"strategy": "two_stage", "epochs": 3},
        **{"steps_per_epoch": 5, "batch_size": 2, "patch_size": 8},
    }
    assert [p["path"] for p in plan.positions] == ["body.0", "body.1", "body.2"]
    assert json.loads(json.dumps(plan.as_dict()))["config"] == chosen.model_dump()
    assert not Path(chosen.run).exists()
    assert "for a training step" in plan.memory and 0 < plan.seconds < 60
    text = plan.text()
    assert "\nmemory      about " in text and "\ntime        about " in text
    assert "space       edsr, 3 positions, 2 or 4 keys, 16 architectures\n" in text
    assert "3         body.2  bchw    4         48x48\n" in text


def test_of_trials(images, tmp_path):
    scoring = {"weights": str(tmp_path / "supernet.safetensors")}
    strategy = {"name": "random", "trials": 9}
    save_file(make_space(config(images, tmp_path)).state_dict(), scoring["weights"])
    plan = plan_search(config(images, tmp_path, strategy=strategy, scoring=scoring))
    assert plan.memory is None and plan.seconds is None
    assert plan.work == {"strategy": "random", "trials": 9, "scored_by": "inherited weights"}
    plan = plan_search(config(images, tmp_path, strategy=strategy))
    assert plan.work["scored_by"] == "training 1 epochs" and plan.work["steps_per_epoch"] == 5


def test_latency_is_not_measured(images, tmp_path, monkeypatch):
    strategy = {"name": "two_stage", "cost": "latency"}
    plan = plan_search(config(images, tmp_path, strategy=strategy))
    assert plan.cost is None and "measured when the search begins" in plan.text()


def test_a_fold_is_held_out(images, tmp_path):
    data = {"train": str(images), "validation": str(images), "fold": 1, "folds": 3}
    plan = plan_search(config(images, tmp_path, data=data))
    assert plan.images == {"train": 2, "validation": 1}


def test_mistakes_are_found(images, tmp_path):
    with pytest.raises(AclaError, match="image folder none does not exist"):
        plan_search(config(images, tmp_path, data={"train": "none"}))
    with pytest.raises(AclaError, match="batch_size=2 cannot be shared evenly by 3 processes"):
        plan_search(config(images, tmp_path, devices=3))
    tpe = {"name": "tpe", "trials": 3}
    with pytest.raises(AclaError, match="devices=2 on nodes=1, but strategy tpe has no supernet"):
        plan_search(config(images, tmp_path, devices=2, strategy=tpe))
    with pytest.raises(AclaError, match="cannot read weights none"):
        plan_search(config(images, tmp_path, strategy=tpe, scoring={"weights": "none"}))
    (tmp_path / "training.ckpt").touch()
    with pytest.raises(AclaError, match="holds a training, which a search would overwrite"):
        plan_search(config(images, tmp_path))
