"""What commands print for programs: JSON and nothing else on standard output; and their help."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from acla_nas.cli import cli

CONFIG = str(Path(__file__).resolve().parents[2] / "examples" / "sr_edsr_search.yml")
TINY = [
    *("space.num_blocks=2", "space.num_channels=4", "space.num_keys=2", "data.patch_size=8"),
    *("data.batch_size=2", "search.steps_per_epoch=1", "train.steps_per_epoch=1", "train.epochs=1"),
    "device=cpu",
]


@pytest.fixture
def ask(run, images):
    """Run a command with --json on the small images; return what it prints, read."""

    def call(*arguments, data=True):
        sources = [f"data.{split}={images}" for split in ("train", "validation", "test")]
        code, out, err = run(*arguments, *(TINY + sources if data else []), "--json")
        assert code == 0, err
        return json.loads(out), err

    return call


def test_search_train_and_eval(ask, tmp_path):
    found, told = ask("search", CONFIG, "strategy.epochs=[1,1]", f"run={tmp_path / 'search'}")
    assert "epoch 2/2" in told and found["num_positions"] == 2
    assert found["architecture"] == str(tmp_path / "search" / "arch.json")
    assert set(found["probabilities"]) == {"1", "2"} and found["cost"].keys() == {"MACs"}
    trained, told = ask("train", CONFIG, f"arch={found['architecture']}", f"run={tmp_path / 'derived'}")
    assert "epoch 1/1" in told and set(trained["images"]) == {"a", "b", "c"}
    scores, _ = ask("eval", CONFIG, f"models=[{tmp_path / 'derived'}]")
    assert scores[str(tmp_path / "derived")]["psnr"] == pytest.approx(trained["psnr"])
    assert "bicubic" in scores


def test_front(ask, tmp_path):
    options = ["strategy.name=exhaustive", "strategy.cost=params", f"run={tmp_path}"]
    found, _ = ask("search", CONFIG, *options)
    told, _ = ask("report", "front", str(tmp_path), "--budget", "params<=0", data=False)
    assert told["unit"] == "parameters" and len(told["candidates"]) == 4
    front = [c for c in told["candidates"] if c["front"]]
    assert [c["positions"] for c in front] == [c["positions"] for c in found["front"]]
    assert told["within_budget"]["positions"] == [] and told["within_budget"]["cost"] == 0
    assert Path(told["within_budget"]["architecture"]).exists()


def test_a_dry_run_does_nothing(ask, run, tmp_path, images):
    plan, told = ask("search", CONFIG, "--dry-run", f"run={tmp_path / 'none'}")
    assert told == "" and plan["architectures"] == 4 and plan["cost"]["nothing"] == 0
    code, out, _ = run("search", CONFIG, *TINY, "--dry-run", f"run={tmp_path / 'none'}")
    assert code == 0 and "name: edsr" in out and "4 architectures" in out
    assert not (tmp_path / "none").exists()
    code, _, err = run("search", CONFIG, *TINY, "--dry-run", "--budget", "parms<=2")
    assert code == 2 and "unknown cost model 'parms'" in err


def commands(group, words=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


@pytest.mark.parametrize("words, command", commands(cli))
def test_every_command_shows_an_example_of_itself(words, command):
    typed = ["acla-nas", *(word for word in words if word != "page")]
    lines = [line.split()[: len(typed)] for line in (command.help or "").splitlines()]
    assert typed in lines
