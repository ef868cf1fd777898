"""acla-nas list and bench latency, and parts of the user's own on every command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from acla_nas import attention, cost, search_spaces, strategies, tasks
from acla_nas.config import Config

Run = Callable[..., tuple[int, str, str]]
KINDS = {
    "spaces": search_spaces,
    "strategies": strategies,
    "attentions": attention,
    "costs": cost,
    "tasks": tasks,
}
OWN = '''
from torch import nn

from acla_nas import CrossLayerSpace
from acla_nas.attention import SqueezeExcitation
from acla_nas.cost import CostModel
from acla_nas.strategies import TwoStage


def small(scale=2, channels=4, **attention):
    """A few convolutions."""
    layers = [nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=1) for i in range(3)]
    network = nn.Sequential(*layers, nn.Conv2d(channels, 3 * scale**2, 1), nn.PixelShuffle(scale))
    return CrossLayerSpace(network, ["0", "1", "2"], **attention)


class Squeeze(SqueezeExcitation):
    """SE under another name."""


class Modules(CostModel):
    """The number of modules."""

    unit = "modules"

    def own(self, attention, query):
        return 1.0

    def pair(self, attention, query, reference):
        return 0.0


class Eager(TwoStage):
    """Two stages that begin with every gate open."""

    def __init__(self, epochs: tuple[int, int] = (1, 1), cost: str = "macs", seed: int = 0) -> None:
        super().__init__(epochs, cost, cost_weight=0.0, initial_alpha=5.0, seed=seed)
'''


def test_all_kinds_with_a_line_each(run: Run) -> None:
    code, out, err = run("list")
    assert (code, err) == (0, "")
    headings = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert headings == [
        "spaces (space.name=NAME)",
        "strategies (strategy.name=NAME)",
        "attentions (space.attention=NAME)",
        "costs (strategy.cost=NAME)",
        "tasks (task.name=NAME)",
    ]
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    assert [name for name, *_ in lines] == [name for module in KINDS.values() for name in module.names()]
    assert all(summary and "`" not in summary[0] for _, *summary in lines)
    assert "Removal of additive white Gaussian noise, scored on all of RGB." in out


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind(run: Run, kind: str) -> None:
    code, out, _ = run("list", kind)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == KINDS[kind].names()


def test_as_json(run: Run) -> None:
    found = json.loads(run("list", "--json")[1])
    assert list(found) == list(KINDS)
    assert [row["name"] for row in found["costs"]] == cost.names()
    assert set(found["tasks"][0]) == {"name", "summary"}
    assert json.loads(run("list", "costs", "--json")[1]) == {"costs": found["costs"]}


def test_every_key_of_a_configuration_is_listed_with_its_meaning(run: Run) -> None:
    code, out, err = run("list", "keys")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[lines.index("data.patch_size: 48") + 1] == "    Side of the degraded patch, in pixels."
    assert "task: {name: super_resolution}" in lines and "arch: bare" in lines and "budget: null" in lines
    rows = json.loads(run("list", "keys", "--json")[1])["keys"]
    assert all(row["summary"].endswith(".") for row in rows)

    def leaves(content: dict[str, Any], prefix: str = "") -> set[str]:
        sections = {key for key, value in content.items() if isinstance(value, dict) and "name" not in value}
        own = {f"{prefix}{key}" for key in content if key not in sections or key == "options"}
        return own.union(*(leaves(content[key], f"{prefix}{key}.") for key in sections - {"options"}))

    assert {row["name"] for row in rows} == leaves(Config().model_dump())


def test_an_unknown_kind(run: Run) -> None:
    code, _, err = run("list", "cost")
    assert code == 2 and "'cost' is not one of 'keys', 'spaces', 'strategies'" in err


def test_bench_latency(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACLA_NAS_CACHE", str(tmp_path))
    (tmp_path / "config.yml").write_text("space: {name: edsr, num_blocks: 3, num_channels: 4, num_keys: 2}\n")
    options = [str(tmp_path / "config.yml"), "device=cpu", "--architectures", "2", "--runs", "7"]
    code, out, err = run("bench", "latency", *options)
    assert (code, err) == (0, "")
    first, heading, *rows, last = out.splitlines()
    assert first.startswith("latency of one 3x48x48 input on ") and "bare backbone" in first
    assert heading.split() == ["predicted", "measured", "error", "of", "modules", "positions"]
    assert len(rows) == 2 and last.startswith("median error ")
    assert len(json.loads(run("bench", "latency", *options, "--json")[1])["rows"]) == 2


@pytest.fixture
def own(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config.yml in the current folder that names a module there; the name of the module."""
    module = f"own_parts_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(OWN)
    config = {
        "space": {"name": f"{module}:small", "channels": 6, "attention": f"{module}:Squeeze"},
        "strategy": {"name": f"{module}:Eager", "cost": f"{module}:Modules"},
        "data": {
            **{split: str(images) for split in ("train", "validation", "test")},
            **{"patch_size": 8, "batch_size": 2},
        },
        "search": {"steps_per_epoch": 1},
        "train": {"steps_per_epoch": 1},
        "device": "cpu",
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry in (search_spaces.registry.REGISTRY, attention.REGISTRY):
        monkeypatch.setattr(registry, "_imported", {})
    return module


def forget(module: str) -> None:
    """Be a process that has not seen the user's module yet."""
    search_spaces.registry.REGISTRY._imported.clear()
    attention.REGISTRY._imported.clear()
    del sys.modules[module]


def test_parts_of_ones_own_on_every_command(run: Run, own: str) -> None:
    code, out, err = run("search", "config.yml", "run=found")
    assert code == 0, err
    assert "positions: 1, 2, 3 of 3\n" in out and "cost: 3 modules\n" in out
    arch = json.loads(Path("found/arch.json").read_text())
    assert arch["space"] == {"name": f"{own}:small", "options": {"scale": 2, "channels": 6}}
    assert arch["attention"]["name"] == f"{own}:Squeeze"
    for arguments in (
        ("train", "config.yml", "arch=found/arch.json", "run=derived"),
        ("train", "config.yml", "arch=bare", "run=baseline"),
        ("eval", "config.yml", "models=[derived,baseline]"),
        ("export", "config.yml", "models=[derived]", "--format", "pt2", "--format", "python"),
    ):
        forget(own)
        code, out, err = run(*arguments)
        assert code == 0, err
    program = torch.export.load("derived/export/model.pt2").module()
    assert program(torch.rand(1, 3, 9, 12)).shape == (1, 3, 18, 24)


def test_another_configuration_does_not_import_what_an_architecture_names(run: Run, own: str) -> None:
    assert run("train", "config.yml", "arch=bare", "run=baseline")[0] == 0
    forget(own)
    for command in ("eval", "export"):
        code, _, err = run(command, "config.yml", "models=[baseline]", "space={name: edsr}")
        assert code == 2 and err.count("\n") == 1
        assert f"acla-nas: error: search space '{own}:small' is code of one's own" in err
        assert "name it in the configuration" in err
    assert own not in sys.modules


def test_a_network_where_a_space_should_be(run: Run, own: str) -> None:
    code, _, err = run("search", "config.yml", f"space.name={own}:Squeeze")
    assert code == 2
    assert "must be a function that returns a CrossLayerSpace; such are there: small\n" in err
